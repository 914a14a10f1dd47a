"""DOT and Mermaid: whole text, escapes."""

from __future__ import annotations

import re

from nrt.drawing import Arrow, Box, Picture

PICTURE = Picture(
    "tiny",
    (
        Box("x", "input", ("x",), "io"),
        Box("r", "Relu", ("r", "fp32[2]"), "pointwise", "Relu r\nfrom a", "added"),
    ),
    (Arrow("x", "r", "x", "x: fp32[2]"), Arrow("x", "r", "x")),
)


def test_dot() -> None:
    assert PICTURE.to_dot() == (
        'digraph "tiny" {\n'
        '  node [shape=box, style="rounded,filled", fontname="monospace", fontsize=10];\n'
        '  n0 [label="input\\nx", tooltip="input", fillcolor="#ffffff", color="#4a4f57"];\n'
        '  n1 [label="+ Relu\\nr\\nfp32[2]", tooltip="Relu r\\nfrom a", fillcolor="#ece2fb", '
        'color="#14893a", penwidth="3"];\n'
        '  n0 -> n1 [tooltip="x: fp32[2]"];\n'
        "  n0 -> n1;\n"
        "}\n"
    )


def test_mermaid() -> None:
    assert PICTURE.to_mermaid() == (
        "flowchart TD\n"
        '  n0["input<br/>x"]:::io\n'
        '  n1["+ Relu<br/>r<br/>fp32#91;2#93;"]:::pointwise-added\n'
        "  n0 --> n1\n"
        "  n0 --> n1\n"
        "  classDef io fill:#ffffff,stroke:#4a4f57,stroke-width:1px,color:#1b1f24\n"
        "  classDef pointwise-added fill:#ece2fb,stroke:#14893a,stroke-width:3px,color:#1b1f24\n"
    )


def test_escapes() -> None:
    name = 'end "of\\ <script>&#;`\n--> x'
    picture = Picture(name, (Box(name, name, (name,), tooltip=name),), ())
    escaped = 'end \\"of\\\\ <script>&#;`\\n--> x'
    assert f'digraph "{escaped}" {{' in picture.to_dot()
    assert f'label="{escaped}\\n{escaped}"' in picture.to_dot()
    line = picture.to_mermaid().splitlines()[1]
    label = line.removeprefix('  n0["').removesuffix('"]:::compute').split("<br/>")
    assert len(label) == 2
    assert not re.search(r'["\\<>&`\n]', label[0])
    assert re.sub(r"#(\d+);", lambda m: chr(int(m[1])), label[0]) == name.replace("\n", " ")
