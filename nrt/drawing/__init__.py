"""Pictures of directed acyclic graphs: SVG, DOT and Mermaid; bar charts; from plain records.

============= ============================================================================
picture       `Box`, `Arrow`, `Picture`: what is drawn; `Drawable`: what can be
layers        rows, and the order within a row that crosses few edges
coordinates   where everything stands
svg           a picture as SVG, and two side by side
text_graphs   a picture as DOT and as Mermaid
table         tables as HTML
bars          bar charts with intervals, as SVG
============= ============================================================================

Knows no graph of nrt's: `nrt.ir` and `nrt.insight` say what their boxes hold.
"""

from __future__ import annotations

from nrt.drawing.picture import Arrow, Box, Drawable, Picture

__all__ = ["Arrow", "Box", "Drawable", "Picture"]
