"""Axes as SVG and pages as HTML, by hand: what every page of this project is drawn with."""
