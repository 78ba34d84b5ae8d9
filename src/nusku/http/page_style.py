"""How the page of the API looks."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfcfa; --panel: #f4f1ec; --line: #ded8ce; --ink: #22262b; --soft: #626a73;
  --link: #0b5cad; --get: #1f6f4a; --post: #0b5cad; --put: #8a5a00; --patch: #6f4bb5;
  --delete: #b3261e; --head: #5b6470;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --panel: #1e2228; --line: #343a43; --ink: #e4e6e9; --soft: #9aa3ae;
    --link: #7db7f5; --get: #6fcf9f; --post: #7db7f5; --put: #e3b45c; --patch: #b9a0ee;
    --delete: #f2877f; --head: #a9b2bd;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1.5rem; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  display: grid; grid-template-columns: 19rem minmax(0, 1fr);
}
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
h1, h2, h3, h4 { line-height: 1.25; margin: 0; text-wrap: balance; }
h1 { font-size: 2.2rem; }
h2 { font-size: 1.6rem; padding-top: 2.5rem; }
h3 { font-size: 1.2rem; }
h3 a { color: inherit; }
h4 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
small { color: var(--soft); font-weight: 400; font-size: .82rem; }
p, ul { margin: .5rem 0; }
main ul { padding-left: 1.2rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .88em; overflow-wrap: anywhere; }
p code, li code, td p code { background: var(--panel); border-radius: 3px; padding: .05em .3em; }
pre {
  font-size: .84rem; line-height: 1.5; margin: .5rem 0; padding: .8rem 1rem; overflow-x: auto;
  background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
}
main { max-width: 58rem; padding: 2.5rem 3rem 6rem; }
main > header p, main > header ul, section > p, article > p { max-width: 44rem; }
.lead { font-size: 1.15rem; color: var(--soft); }
article { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.6rem; }

nav {
  position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 2rem 1rem 3rem 1.5rem;
  background: var(--panel); border-right: 1px solid var(--line); font-size: .88rem;
}
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul > li { margin-bottom: .9rem; }
nav > ul > li > a { font-weight: 650; color: var(--ink); }
nav li li a {
  display: grid; grid-template-columns: 3.6rem 1fr; gap: .5rem; align-items: baseline;
  color: var(--ink); padding: .15rem 0; line-height: 1.35;
}

.method { font-size: .72rem; letter-spacing: .03em; font-weight: 700; }
.get { color: var(--get); } .post { color: var(--post); } .put { color: var(--put); }
.patch { color: var(--patch); } .delete { color: var(--delete); } .head { color: var(--head); }
article > .line { max-width: none; display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: baseline; }
.line .method { font-size: .85rem; }
.line code { background: none; padding: 0; font-size: .95rem; }
.line small { margin-left: auto; }
var { color: var(--soft); font-style: normal; }

table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .5rem 0; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .8rem; }
th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
td:first-child small { display: block; }
td:nth-child(2):not(:last-child) { width: 26%; }
td p, td ul { margin: 0 0 .25rem; }
td ul { padding-left: 1rem; }
td table { margin: .3rem 0 0; }

.answer { display: grid; grid-template-columns: 3rem minmax(0, 1fr); margin: .4rem 0; }
.answer p { margin: 0 0 .3rem; }
.status { font-weight: 700; padding-top: .1rem; }
summary { cursor: pointer; color: var(--link); font-size: .9rem; }
main details { margin: .4rem 0; }

@media (max-width: 60rem) {
  body { display: block; }
  nav {
    position: static; height: auto; border-right: 0; border-bottom: 1px solid var(--line);
    padding: 1rem 1.2rem;
  }
  nav ul ul { display: none; }
  nav > ul { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
  nav > ul > li { margin: 0; }
  main { padding: 1.5rem 1.2rem 4rem; }
  .line small { margin-left: 0; width: 100%; }
}
@media (max-width: 40rem) {
  h1 { font-size: 1.8rem; }
  thead { display: none; }
  table, tbody, tr, td { display: block; width: auto !important; }
  tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { border: 0; padding: .1rem 0; }
  td:first-child { white-space: normal; }
  td:first-child small { display: inline; margin-left: .5rem; }
  td table { padding-left: .8rem; border-left: 2px solid var(--line); }
}
@media print { nav { display: none; } body { display: block; } pre { white-space: pre-wrap; } }
"""
