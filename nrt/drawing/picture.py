"""What is drawn: boxes, and arrows between them."""

from __future__ import annotations

from dataclasses import dataclass

from nrt.errors import GraphError

__all__ = ["Arrow", "Box", "Drawable", "Picture"]


@dataclass(frozen=True)
class Box:
    """A node of the picture.

    Attributes:
        key: unique in its picture.
        title: first line, set in bold.
        lines: further lines.
        kind: what colors it: ``compute``, ``pointwise``, ``memory``, ``view`` or ``io``.
        tooltip: shown under the pointer; may have many lines.
        mark: ``added``, ``removed`` or ``changed`` in a picture of a difference.
    """

    key: str
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "compute"
    tooltip: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Arrow:
    """An edge from ``source`` to ``target``, both keys of boxes.

    Attributes:
        source: where it starts.
        target: where it ends.
        group: arrows of one source and group are drawn as one trunk that branches: one tensor.
        tooltip: shown under the pointer.
    """

    source: str
    target: str
    group: str = ""
    tooltip: str = ""


class Drawable:
    """What has a picture: SVG, DOT, Mermaid, and itself in a notebook."""

    def picture(self) -> Picture:
        """The boxes and arrows."""
        raise NotImplementedError(type(self).__name__)

    def to_svg(self) -> str:
        """The picture as an SVG document, laid out by `nrt.drawing.layers`."""
        from nrt.drawing.svg import to_svg

        return to_svg(self.picture())

    def to_dot(self) -> str:
        """The picture in Graphviz's language."""
        from nrt.drawing.text_graphs import to_dot

        return to_dot(self.picture())

    def to_mermaid(self) -> str:
        """The picture as a Mermaid flowchart, which Markdown viewers draw."""
        from nrt.drawing.text_graphs import to_mermaid

        return to_mermaid(self.picture())

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        from nrt.drawing.svg import in_scroll_box

        return in_scroll_box(self.to_svg())


@dataclass(frozen=True)
class Picture(Drawable):
    """Boxes and arrows without a cycle.

    Raises:
        GraphError: two boxes have one key, or an arrow starts or ends at no box.
    """

    name: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    def __post_init__(self) -> None:
        keys: set[str] = set()
        for box in self.boxes:
            if box.key in keys:
                raise GraphError(f"picture '{self.name}': two boxes have the key '{box.key}'")
            keys.add(box.key)
        for arrow in self.arrows:
            for end in (arrow.source, arrow.target):
                if end not in keys:
                    raise GraphError(
                        f"picture '{self.name}': arrow '{arrow.source}' -> '{arrow.target}': "
                        f"there is no box '{end}'"
                    )

    def picture(self) -> Picture:
        """Itself."""
        return self
