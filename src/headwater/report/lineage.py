"""The drawn graph of stages: who came from whom, a matrix of runs as one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from headwater.records import StageRecord
from headwater.report import formatting as fmt
from headwater.report.collect import accuracy, ancestors, trained_on
from headwater.report.svg import compact, drawing, join, tag, text

NODE_WIDTH, NODE_HEIGHT = 152.0, 74.0
GAP_ALONG, GAP_ACROSS = 30.0, 18.0
NAME_COLUMNS = 18  # of the name in a node
ELSEWHERE = "not in this folder"


@dataclass
class Node:
    """One stage, several alike, or a parent whose record isn't there."""

    title: str
    lines: list[str]
    tip: str
    made: set[str]
    """The identities of the models that it made."""
    parents: set[str] = field(default_factory=set)
    """The identities of the models that it started from."""
    several: bool = False
    outside: bool = False
    depth: int = 0


def draw_lineage(records: Sequence[StageRecord]) -> tuple[Markup, Markup]:
    """Draw the graph twice: from left to right for wide screens, from top to bottom for narrow ones."""
    nodes = build_nodes(records)
    return draw(nodes, across=True), draw(nodes, across=False)


def build_nodes(records: Sequence[StageRecord]) -> list[Node]:
    """Return the nodes in order of depth, then of time."""
    nodes = [node_of(group) for group in grouped(records)]
    known = {record.identity for record in records}
    outside: dict[str, Node] = {}
    for parent in (parent for record in records for parent in record.parents):
        if parent.identity not in known:
            lines = [fmt.fit(parent.name, NAME_COLUMNS), ELSEWHERE]
            tip = f"{parent.name}, identity {parent.identity[:12]}: its record is {ELSEWHERE}"
            outside[parent.identity] = Node(fmt.verb_label(parent.verb), lines, tip, {parent.identity}, outside=True)
    nodes = [*outside.values(), *nodes]
    set_depths(nodes)
    return sorted(nodes, key=lambda node: node.depth)


def grouped(records: Sequence[StageRecord]) -> list[list[StageRecord]]:
    """Put runs that do the same to the same rows together; a transfer from scratch belongs too."""
    groups: dict[object, list[StageRecord]] = {}
    for number, record in enumerate(records):
        use = trained_on(record)
        parents = () if record.verb == "transfer" else tuple(sorted(parent.identity for parent in record.parents))
        key: object = (record.verb, use.path if use else "", parents)
        chained = any(earlier in ancestors(record, records) for earlier in groups.get(key, []))
        groups.setdefault(number if chained else key, []).append(record)
    return list(groups.values())


def node_of(group: Sequence[StageRecord]) -> Node:
    """Describe one node: what was done, how often, and the accuracies."""
    first = group[0]
    found = [value for value in map(accuracy, group) if value is not None]
    many = len(group) > 1
    if many:
        methods = list(dict.fromkeys(record.method for record in group if record.method))
        name = f"{len(methods)} methods" if len(methods) > 2 else ", ".join(methods) or first.name
        span = f" {fmt.DASH} ".join(fmt.percent(end(found)) for end in (min, max)) if found else ""
    else:
        name, span = first.name, fmt.percent(found[0]) if found else total_size(first)
    title = fmt.verb_label(first.verb) + (f" {fmt.TIMES} {len(group)}" if many else "")
    names = [record.name for record in group]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    tip = f"{title}: {shown}" + (f"; accuracy {span}" if found else "")
    made = {record.identity for record in group if record.identity}
    parents = {parent.identity for record in group for parent in record.parents} - made
    return Node(title, [fmt.fit(name, NAME_COLUMNS), span], tip, made, parents, several=many)


def total_size(record: StageRecord) -> str:
    """Return the size of what the stage wrote, where it says so."""
    return fmt.size(sum(record.sizes.values())) if record.sizes else ""


def set_depths(nodes: Sequence[Node]) -> None:
    """Put each node one step after the last of its parents; damaged records that form a ring end too."""
    for _ in nodes:
        for node in nodes:
            above = [other.depth for other in above_of(node, nodes)]
            node.depth = min(max(above, default=-1) + 1, len(nodes) - 1)


def above_of(node: Node, nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that it started from: a matrix of runs is one, whichever of its runs was taken."""
    return [other for other in nodes if other is not node and not node.parents.isdisjoint(other.made)]


def draw(nodes: Sequence[Node], *, across: bool) -> Markup:
    """Draw the graph along one direction."""
    depths = [node.depth for node in nodes]
    widest = max(depths.count(depth) for depth in depths)
    step = NODE_WIDTH + GAP_ALONG if across else NODE_HEIGHT + GAP_ALONG
    side = NODE_HEIGHT + GAP_ACROSS if across else NODE_WIDTH + GAP_ACROSS
    seen: dict[int, int] = {}
    places: dict[int, tuple[float, float]] = {}
    boxes: list[Markup] = []
    for node in nodes:
        index = seen.get(node.depth, 0)
        seen[node.depth] = index + 1
        along = 2 + node.depth * step
        aside = 2 + (index + (widest - depths.count(node.depth)) / 2) * side
        x, y = (along, aside) if across else (aside, along)
        places[id(node)] = (x, y)
        boxes.append(box(node, x, y))
    edges = [
        edge(places[id(parent)], places[id(node)], across=across) for node in nodes for parent in above_of(node, nodes)
    ]
    long, short = 4 + (max(depths) + 1) * step - GAP_ALONG, 4 + widest * side - GAP_ACROSS
    width, height = (long, short) if across else (short, long)
    label = "Lineage. " + "; ".join(describe(node, nodes) for node in nodes)
    return drawing([*edges, *boxes], width=width, height=height, label=label, class_="natural")


def describe(node: Node, nodes: Sequence[Node]) -> str:
    """Say a node aloud."""
    above = [other.title for other in above_of(node, nodes)]
    return f"{node.tip}" + (f", from {' and '.join(above)}" if above else "")


def box(node: Node, x: float, y: float) -> Markup:
    """Draw a node."""
    parts = [tag("title", node.tip)]
    if node.several:
        parts.append(tag("rect", x=x + 5, y=y + 5, width=NODE_WIDTH - 6, height=NODE_HEIGHT - 6, rx=9, class_="under"))
    parts.append(tag("rect", x=x, y=y, width=NODE_WIDTH - 6, height=NODE_HEIGHT - 6, rx=9))
    parts.append(text(node.title, x + 13, y + 21, class_="verb"))
    parts += [
        text(words, x + 13, y + 39 + 17 * index, class_="name" if index == 0 else "figure")
        for index, words in enumerate(node.lines)
    ]
    return tag("g", join(parts), class_="node outside" if node.outside else "node")


def edge(start: tuple[float, float], end: tuple[float, float], *, across: bool) -> Markup:
    """Draw a curved line from a parent to a child."""
    wide, tall = NODE_WIDTH - 6, NODE_HEIGHT - 6
    if across:
        x1, y1, x2, y2 = start[0] + wide, start[1] + tall / 2, end[0], end[1] + tall / 2
        bend = (x1 + x2) / 2
        numbers = (x1, y1, bend, y1, bend, y2, x2, y2)
    else:
        x1, y1, x2, y2 = start[0] + wide / 2, start[1] + tall, end[0] + wide / 2, end[1]
        bend = (y1 + y2) / 2
        numbers = (x1, y1, x1, bend, x2, bend, x2, y2)
    a, b, c, d, e, f, g, h = map(compact, numbers)
    return tag("path", d=f"M{a},{b}C{c},{d} {e},{f} {g},{h}", class_="edge")
