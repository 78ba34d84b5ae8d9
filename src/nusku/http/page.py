"""The OpenAPI document as one page for people: no scripts, nothing fetched, light and dark.

:func:`page` knows OpenAPI, not nusku. Every piece of text goes through :func:`escape` on its way
into the page; functions that return markup are named for what they show.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, NamedTuple
from urllib.parse import quote

from nusku.http.page_style import STYLE

Node = dict[str, Any]

_METHODS = ("get", "head", "post", "put", "patch", "delete")
_BEFORE = "export NUSKU=http://127.0.0.1:8888"
_BEFORE_OWN = "\nexport TOKEN=…  # what says who you are"
_INT64_ENDS = (-(2**63), 2**63 - 1)


class _Operation(NamedTuple):
    """One method of one path, with the parameters of both."""

    method: str
    path: str
    node: Node
    parameters: list[Node]


def page(document: Node) -> str:
    """The page, complete from the doctype to the end."""
    return _Page(document).render()


class _Page:
    def __init__(self, document: Node) -> None:
        self.document = document
        self.operations = list(self._operations())

    def render(self) -> str:
        info = self.document["info"]
        tags = self.document.get("tags", [])
        sections = "".join(self._section(tag) for tag in tags)
        title = escape(info["title"])
        return (
            "<!doctype html>\n"
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}: the API</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head><body>"
            f"{self._navigation(tags)}"
            f'<main><header id="top"><h1>{title} <small>{escape(info["version"])}</small></h1>'
            f'<p class="lead">{escape(info.get("summary", ""))}</p>'
            f"{markdown(info.get('description', ''))}"
            "<p>The examples below are for a shell in which this was said first:</p>"
            f"<pre>{_BEFORE}{_BEFORE_OWN if self.document.get('security') else ''}</pre></header>"
            f"{sections}{self._schemas()}</main></body></html>\n"
        )

    # Finding things

    def _operations(self) -> Iterator[_Operation]:
        for path, item in self.document["paths"].items():
            shared = [self._resolve(node) for node in item.get("parameters", [])]
            for method, node in item.items():
                if method in _METHODS:
                    own = [self._resolve(each) for each in node.get("parameters", [])]
                    yield _Operation(method, path, node, [*shared, *own])

    def _tagged(self, tag: str) -> list[_Operation]:
        return [each for each in self.operations if tag in each.node["tags"]]

    def _resolve(self, node: Node) -> Node:
        """The node that a reference stands for; what is said beside the reference goes first."""
        if "$ref" not in node:
            return node
        target: Node = self.document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return {**target, **{key: value for key, value in node.items() if key != "$ref"}}

    # Navigation

    def _navigation(self, tags: list[Node]) -> str:
        groups = ""
        for tag in tags:
            entries = "".join(self._entry(each) for each in self._tagged(tag["name"]))
            groups += f"<li>{_anchor(_slug(tag['name']), tag['name'])}<ul>{entries}</ul></li>"
        return (
            f'<nav aria-label="Operations"><ul><li>{_anchor("top", "About")}</li>{groups}'
            f"<li>{_anchor('schemas', 'Schemas')}</li></ul></nav>"
        )

    @staticmethod
    def _entry(each: _Operation) -> str:
        return (
            f'<li><a href="#{escape(each.node["operationId"])}">{_badge(each.method)}'
            f"<span>{escape(each.node['summary'])}</span></a></li>"
        )

    # Operations

    def _section(self, tag: Node) -> str:
        operations = "".join(self._operation(each) for each in self._tagged(tag["name"]))
        return (
            f'<section id="{_slug(tag["name"])}"><h2>{escape(tag["name"])}</h2>'
            f"{markdown(tag.get('description', ''))}{operations}</section>"
        )

    def _operation(self, each: _Operation) -> str:
        name = escape(each.node["operationId"])
        parts = (
            f'<article id="{name}"><h3><a href="#{name}">{escape(each.node["summary"])}</a></h3>',
            f'<p class="line">{_badge(each.method)}<code>{_path(each.path)}</code>'
            f"<small>{name}</small></p>",
            markdown(each.node.get("description", "")),
            self._parameters(each.parameters),
            self._request_body(each),
            f"<h4>Try it</h4><pre>{escape(self._curl(each))}</pre>",
            self._responses(each.node["responses"]),
            "</article>",
        )
        return "".join(parts)

    def _parameters(self, parameters: list[Node]) -> str:
        if not parameters:
            return ""
        rows = [
            (
                f"<code>{escape(_parameter_name(node))}</code>"
                f"<small>{escape(node['in'])}{', required' if node.get('required') else ''}</small>",
                self._kind(node["schema"]),
                markdown(node.get("description", "")),
            )
            for node in parameters
        ]
        return "<h4>Parameters</h4>" + _table(("Name", "Value", "Meaning"), rows)

    def _request_body(self, each: _Operation) -> str:
        body = each.node.get("requestBody")
        if body is None:
            return ""
        [(media_type, content)] = body["content"].items()
        need = "required" if body.get("required") else "optional"
        return (
            f"<h4>Body <small>{need}, {escape(media_type)}</small></h4>"
            f"{markdown(body.get('description', ''))}{self._shape(content['schema'], deep=True)}"
        )

    def _curl(self, each: _Operation) -> str:
        """A command for a shell, from the examples of the parameters and the body."""
        values = {
            (node["in"], node["name"]): _wire(node["example"])
            for node in each.parameters
            if "example" in node
        }
        path = re.sub(
            r"\{(.+?)\}", lambda found: quote(values["path", found[1]], safe=""), each.path
        )
        asked = "&".join(
            f"{name}={quote(value, safe=',')}"
            for (where, name), value in values.items()
            if where == "query"
        )
        url = f'"$NUSKU{path}{"?" + asked if asked else ""}"'
        flags = {"get": "", "head": " --head"}.get(each.method, f" -X {each.method.upper()}")
        lines = [f"curl -i{flags} {url}".replace("-i --head", "--head")]
        lines += [
            f"-H {shlex.quote(f'{name}: {value}')}"
            for (where, name), value in values.items()
            if where == "header"
        ]
        if each.node.get("security", self.document.get("security")):
            lines.append('-H "X-Auth-Token: $TOKEN"')
        body = each.node.get("requestBody")
        if body:
            [(media_type, content)] = body["content"].items()
            lines.append(f"-H {shlex.quote(f'Content-Type: {media_type}')}")
            lines.append(f"-d {shlex.quote(_json(content['example']))}")
        return " \\\n  ".join(lines)

    def _responses(self, responses: Node) -> str:
        shown = "".join(
            self._response(status, node) for status, node in responses.items() if status < "4"
        )
        failed = [(status, node) for status, node in responses.items() if status >= "4"]
        if not failed:
            return f"<h4>Answers</h4>{shown}"
        rows = [
            (f"<code>{escape(status)}</code>", markdown(node["description"]))
            for status, node in failed
        ]
        listed = ", ".join(escape(status) for status, _ in failed)
        return (
            f"<h4>Answers</h4>{shown}<details><summary>Refusals and failures "
            f"<small>{listed}</small></summary>{_table(('Status', 'Titles'), rows)}</details>"
        )

    def _response(self, status: str, node: Node) -> str:
        headers = [
            (f"<code>{escape(name)}</code>", markdown(self._resolve(header)["description"]))
            for name, header in node.get("headers", {}).items()
        ]
        text = f'<div class="answer"><code class="status">{escape(status)}</code><div>'
        text += markdown(node["description"])
        for media_type, content in node.get("content", {}).items():
            text += f"<p>{self._kind(content['schema'])} <small>{escape(media_type)}</small></p>"
            if "example" in content:
                text += f"<pre>{escape(_text(content['example']))}</pre>"
        if headers:
            text += f"<details><summary>Headers</summary>{_table(('Name', 'Meaning'), headers)}</details>"
        return text + "</div></div>"

    # Schemas

    def _schemas(self) -> str:
        parts = "".join(
            f'<article id="schema-{escape(name)}"><h3>{escape(name)}</h3>'
            f"{markdown(node.get('description', ''))}{self._shape(node)}</article>"
            for name, node in self.document["components"]["schemas"].items()
        )
        return f'<section id="schemas"><h2>Schemas</h2>{parts}</section>'

    def _shape(self, node: Node, *, deep: bool = False) -> str:
        """The members of an object, or of the objects in an array; else one line.

        ``deep`` shows what is in arrays too, instead of leaving it to the schemas.
        """
        node = self._resolve(node)
        if node.get("type") == "array" and "properties" in self._resolve(node["items"]):
            return f"<p>An array; each element is:</p>{self._shape(node['items'])}"
        if not node.get("properties"):
            return f"<p>{self._kind(node)}</p>"
        required = node.get("required", ())
        rows = []
        for name, member in node["properties"].items():
            inside = deep and "properties" in self._resolve(member.get("items", {}))
            need = "<small>required</small>" if name in required else ""
            meaning = markdown(self._resolve(member).get("description", ""))
            if inside or "properties" in member:
                meaning += self._shape(member)
            rows.append((f"<code>{escape(name)}</code>{need}", self._kind(member), meaning))
        table = _table(("Member", "Value", "Meaning"), rows)
        match node.get("additionalProperties"):
            case False:
                return f"{table}<p>No other members.</p>"
            case dict(others):
                return f"{table}<p>All other members: {self._kind(others)}.</p>"
        return table

    def _kind(self, node: Node) -> str:
        """What a value may be, on one line."""
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return f'<a href="#schema-{escape(name)}">{escape(name)}</a>'
        if "const" in node:
            return f"<code>{escape(json.dumps(node['const']))}</code>"
        if "enum" in node:
            return "one of " + ", ".join(
                f"<code>{escape(value if isinstance(value, str) else json.dumps(value))}</code>"
                for value in node["enum"]
            )
        if "anyOf" in node:
            return ", or ".join(self._kind(each) for each in node["anyOf"])
        types = node.get("type", "any")
        words = " or ".join([types] if isinstance(types, str) else types)
        if words == "array":
            return f"array of {self._kind(node['items'])}{_limits(node)}"
        return escape(words) + _limits(node)


def _limits(node: Node) -> str:
    """The range of a number, or of a length. The ends of 64 bits go without saying."""
    text = ""
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", ""),
    ):
        ends = [None if end in _INT64_ENDS else end for end in (node.get(low), node.get(high))]
        match ends:
            case [None, None]:
                continue
            case [1, None] if unit:
                text += ", not empty"
            case [bottom, None]:
                text += f", at least {bottom}{unit}"
            case [None, top]:
                text += f", at most {top}{unit}"
            case [bottom, top] if bottom == top:
                text += f", {top}{unit}"
            case [bottom, top]:
                text += f", {bottom} to {top}{unit}"
    if node.get("format", "int64") != "int64":
        text += f", {escape(node['format'])}"
    elif len(node.get("pattern", "")) in range(1, 30):
        text += f", <code>{escape(node['pattern'])}</code>"
    return text


def _parameter_name(node: Node) -> str:
    """An exploded object stands for parameters of any other name."""
    return "any other" if node["schema"].get("type") == "object" else node["name"]


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of markup that is escaped already."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _badge(method: str) -> str:
    return f'<b class="method {escape(method)}">{escape(method.upper())}</b>'


def _path(path: str) -> str:
    """A path that may be broken after its slashes, with the parameters set apart."""
    marked = re.sub(r"\{(\w+)\}", r"<var>{\1}</var>", escape(path))
    return re.sub(r"(?<!<)/", "/<wbr>", marked)


def _anchor(target: str, text: str) -> str:
    return f'<a href="#{escape(target)}">{escape(text)}</a>'


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _wire(example: Any) -> str:
    """A parameter's value as it is sent."""
    return ",".join(example) if isinstance(example, list) else str(example)


def _text(example: Any) -> str:
    return example if isinstance(example, str) else _json(example)


def _json(value: Any) -> str:
    """On one line if that is short enough to read."""
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= 76 else json.dumps(value, ensure_ascii=False, indent=2)


def markdown(text: str) -> str:
    """The little that descriptions use: paragraphs, lists, `code`, **strong** and *stressed*."""
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if block]
    return "".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    if not block.startswith("- "):
        return f"<p>{_inline(block)}</p>"
    items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
    return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"


def _inline(text: str) -> str:
    def piece(part: str) -> str:
        if len(part) > 1 and part[0] == part[-1] == "`":
            return f"<code>{escape(part[1:-1])}</code>"
        marked = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(part))
        return re.sub(r"\*(\w.*?)\*", r"<em>\1</em>", marked)

    return "".join(piece(part) for part in re.split(r"(`[^`]*`)", text.strip()))
