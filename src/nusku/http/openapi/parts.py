"""What every operation of the document is put together from.

A *node* is a piece of the document: plain dicts, lists, strings and numbers, ready for JSON.
Nothing here knows an operation; the other modules of this package know nothing but theirs.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from nusku.errors import (
    EmptyProject,
    Forbidden,
    Invalid,
    InvalidContentType,
    InvalidQueueName,
    InvalidTopicName,
    MissingClient,
    MissingProject,
    NotAcceptable,
    NuskuError,
    Unavailable,
    WrongClient,
)

Node = dict[str, object]
Refusals = tuple[type[NuskuError], ...]

JSON = "application/json"

# What each request can be refused with before its operation is looked at, in the order of the
# checks: on any path, on those that look at Accept, below /v2, and where the store is asked.
ANYWHERE: Refusals = (Invalid,)
ACCEPTED: Refusals = (*ANYWHERE, InvalidContentType, NotAcceptable)
IDENTIFIED: Refusals = (
    *ACCEPTED,
    MissingClient,
    WrongClient,
    MissingProject,
    EmptyProject,
)
STORED: Refusals = (*IDENTIFIED, Forbidden, Unavailable)


class Noun(NamedTuple):
    """Queues and topics take the same requests; this is what differs in describing them.

    ``many`` is their path segment and policy prefix. ``suffix`` tells the operations on a
    topic's messages and subscriptions from those on a queue's, which share a policy name.
    """

    one: str
    many: str
    tag: str
    messages_tag: str
    subscriptions_tag: str
    invalid_name: type[NuskuError]
    suffix: str
    example: str

    @property
    def parameter(self) -> str:
        return f"{self.one}_name"

    @property
    def path(self) -> str:
        return f"/v2/{self.many}/{{{self.parameter}}}"

    @property
    def example_path(self) -> str:
        return f"/v2/{self.many}/{self.example}"

    @property
    def schema(self) -> str:
        """Prefix of the schemas that only this noun uses."""
        return self.one.capitalize()


QUEUE = Noun(
    "queue", "queues", "Queues", "Messages", "Subscriptions", InvalidQueueName, "", "orders"
)
TOPIC = Noun(
    "topic",
    "topics",
    "Topics",
    "Topic messages",
    "Topic subscriptions",
    InvalidTopicName,
    ":topic",
    "news",
)


def ref(kind: str, name: str) -> Node:
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Node:
    return ref("schemas", name)


# Schemas


def integer(low: int | None, high: int | None, text: str = "", *, null: bool = False) -> Node:
    """An integer of 64 bits; ``None`` is an end without a limit of its own."""
    node: Node = {"type": ["integer", "null"] if null else "integer", "format": "int64"}
    node["minimum"] = -(2**63) if low is None else low
    node["maximum"] = 2**63 - 1 if high is None else high
    return described(node, text)


def string(text: str = "", **more: object) -> Node:
    return described({"type": "string", **more}, text)


def array(items: Node, text: str = "", **more: object) -> Node:
    return described({"type": "array", "items": items, **more}, text)


def closed(
    properties: Mapping[str, Node], text: str = "", *, optional: Collection[str] = ()
) -> Node:
    """An object with exactly these members; clients reject unknown ones."""
    return described(
        {
            "type": "object",
            "required": [name for name in properties if name not in optional],
            "properties": dict(properties),
            "additionalProperties": False,
        },
        text,
    )


def open_object(
    properties: Mapping[str, Node], text: str = "", *, required: Sequence[str] = ()
) -> Node:
    """An object that may have more members than these."""
    node: Node = {"type": "object", "properties": dict(properties)}
    if required:
        node["required"] = list(required)
    return described(node, text)


def described(node: Node, text: str) -> Node:
    return {**node, "description": text} if text else node


# Parameters


def query(name: str, of: Node, text: str, *, example: object = None, **more: object) -> Node:
    """A query parameter. An empty value counts as none."""
    node: Node = {"name": name, "in": "query", "description": text, "allowEmptyValue": True}
    node |= {**more, "schema": of}
    return node if example is None else {**node, "example": example}


def header(name: str, of: Node, text: str) -> Node:
    """A header that may be sent."""
    return {"name": name, "in": "header", "description": text, "schema": of}


def flag(name: str, text: str, *, example: object = None) -> Node:
    """A boolean query parameter: ``false`` if not given, in any of the spellings clients use."""
    return query(name, schema("Flag"), text, example=example)


# Operations


def operation(
    name: str,
    tag: str,
    summary: str,
    text: str,
    *,
    answers: Mapping[int, Node],
    refusals: Iterable[type[NuskuError]] = (),
    parameters: Sequence[Node] = (),
    body: Node | None = None,
) -> Node:
    """One method of one path. ``name`` is that of the policy rule, where there is one."""
    node: Node = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": text,
    }
    if parameters:
        node["parameters"] = list(parameters)
    if body is not None:
        node["requestBody"] = body
    node["responses"] = {
        **{str(status): answer for status, answer in answers.items()},
        **refused(refusals),
    }
    return node


def body(of: Node, text: str, *, example: object, required: bool, media_type: str = JSON) -> Node:
    return {
        "description": text,
        "required": required,
        "content": {media_type: {"schema": of, "example": example}},
    }


def answer(
    text: str,
    of: Node | None = None,
    *,
    example: object = None,
    media_type: str = JSON,
    headers: Sequence[str] = (),
    links: Node | None = None,
) -> Node:
    """A response; without a schema it has no body. ``headers`` are names of components."""
    names = ("x-openstack-request-id", *headers)
    node: Node = {"description": text}
    node["headers"] = {name: ref("headers", name) for name in names}
    if of is not None:
        content: Node = {"schema": of}
        if example is not None:
            content["example"] = example
        node["content"] = {media_type: content}
    if links:
        node["links"] = links
    return node


def link(operation_id: str, text: str, noun: Noun, **parameters: str) -> Node:
    """Where to go from an answer, in the same project and queue or topic.

    ``parameters`` are runtime expressions by name; they stand beside those of the noun.
    """
    parameters = {
        noun.parameter: f"$request.path.{noun.parameter}",
        "header.X-Project-ID": "$request.header.X-Project-ID",
        **parameters,
    }
    return {"operationId": operation_id, "description": text, "parameters": parameters}


def refused(classes: Iterable[type[NuskuError]]) -> Node:
    """The answers to what goes wrong, by status."""
    by_status: dict[int, list[type[NuskuError]]] = {}
    for cls in dict.fromkeys(classes):
        by_status.setdefault(cls.status, []).append(cls)
    return {str(status): _refusal(by_status[status]) for status in sorted(by_status)}


def _refusal(classes: Sequence[type[NuskuError]]) -> Node:
    """One status with everything that it can mean: titles and meanings come from the errors."""
    meanings = [" ".join((cls.__doc__ or "").split()).replace("``", "`") for cls in classes]
    lines = [f"- `{cls.title}`: {text}" for cls, text in zip(classes, meanings, strict=True)]
    of: Node = {
        **schema("Error"),
        "properties": {"title": {"enum": list(dict.fromkeys(cls.title for cls in classes))}},
    }
    return answer("\n".join(lines), of, headers=("Vary",))
