"""The passes of a stage as programs: what a GPU computes and exchanges, in order. Times nothing.

Work has, under a layer, `own_f`, `own_i`, `own_w` (all but its routed experts: forward, gradient of the input, of the weights),
`experts_f`, `experts_i`, `experts_w`, and the exchanges `dispatch`, `combine` on the way forward, `back_dispatch` (the gradient
of what combine brought, sent as dispatch sent) and `back_combine` on the way back. Layer -1 is the unembedding; layer -2 has
`hand_over`, what the task before leaves to the next stages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from clustersim.engine.program import COMMUNICATE, COMPUTE, Op

HEAD, HANDOVER = -1, -2
FORWARD, BACKWARD = 0, 1        # the micro-batches of a program of two
EXCHANGED = ("dispatch", "combine", "back_dispatch", "back_combine", "hand_over")


class _List:
    """Operations as they are put down; names say what waits for what."""

    def __init__(self, routed: Collection[int]) -> None:
        self.ops: list[Op] = []
        self._places: dict[tuple[str, int, int], int] = {}
        self._routed = routed

    def routed(self, layer: int) -> bool:
        return layer in self._routed

    def put(self, part: str, layer: int, batch: int, *after: tuple[str, int]) -> None:
        stream = COMMUNICATE if part in EXCHANGED else COMPUTE
        places = tuple(self._places[part, at, batch] for part, at in after if (part, at, batch) in self._places)
        self._places[part, layer, batch] = len(self.ops)
        self.ops.append(Op(stream=stream, part=part, layer=layer, batch=batch, after=places))


def forward(layers: Sequence[int], routed: Collection[int], *, head: bool, batch: int = FORWARD) -> list[Op]:
    """A forward pass through a stage.

    Args:
        layers: of the stage, in order.
        routed: those with routed experts.
        head: the unembedding follows.
        batch: the micro-batch whose pass it is.
    """
    todo = _List(routed)
    _forward(todo, layers, head, batch)
    return todo.ops


def backward(layers: Sequence[int], routed: Collection[int], *, head: bool, weights: bool, again: bool = False) -> list[Op]:
    """A backward pass through a stage, `weights` with their gradients, `again` with the forward pass made once more before."""
    todo = _List(routed)
    if again:
        _forward(todo, layers, False, BACKWARD)
    before: tuple[tuple[str, int], ...] = ()
    for layer in ([HEAD] if head else []) + list(reversed(layers)):
        if todo.routed(layer):
            todo.put("back_dispatch", layer, BACKWARD, *before)
            todo.put("experts_i", layer, BACKWARD, ("back_dispatch", layer))
            todo.put("back_combine", layer, BACKWARD, ("experts_i", layer))
            if weights:
                todo.put("experts_w", layer, BACKWARD)
        todo.put("own_i", layer, BACKWARD, ("back_combine", layer))
        if weights:
            todo.put("own_w", layer, BACKWARD)
        before = (("own_i", layer),)
    return todo.ops


def both(
    ahead: Sequence[int], back: Sequence[int], routed: Collection[int], *, head_ahead: bool, head_back: bool
) -> list[Op]:
    """A forward pass through one stage and a backward pass through another, each beside the exchanges of the other.

    Layer by layer as in figure 4 of arXiv 2412.19437: experts back beside the dispatch, experts forward beside the exchange back,
    attention back beside the combine, attention forward beside the next dispatch back. What goes to other stages takes its turn
    in the stream of exchanges.
    """
    todo = _List(routed)
    if any(todo.routed(layer) for layer in (*ahead, *back)):
        todo.put("hand_over", HANDOVER, FORWARD)
    behind = ([HEAD] if head_back else []) + list(reversed(back))
    for step in range(max(len(ahead), len(behind))):
        layer = ahead[step] if step < len(ahead) else None
        other = behind[step] if step < len(behind) else None
        if other is not None and todo.routed(other):
            todo.put("back_dispatch", other, BACKWARD, *((("own_i", behind[step - 1]),) if step else ()))
        if layer is not None:
            todo.put("own_f", layer, FORWARD, *((("combine", ahead[step - 1]),) if step else ()))
            if todo.routed(layer):
                todo.put("dispatch", layer, FORWARD, ("own_f", layer))
        if other is not None and todo.routed(other):
            todo.put("experts_i", other, BACKWARD, ("back_dispatch", other))
            todo.put("experts_w", other, BACKWARD)
            todo.put("back_combine", other, BACKWARD, ("experts_i", other))
        if layer is not None and todo.routed(layer):
            todo.put("experts_f", layer, FORWARD, ("dispatch", layer))
            todo.put("combine", layer, FORWARD, ("experts_f", layer))
        if other is not None:
            todo.put("own_i", other, BACKWARD, ("back_combine", other))
            todo.put("own_w", other, BACKWARD)
    if head_ahead:
        todo.put("own_f", HEAD, FORWARD, *((("combine", ahead[-1]),) if ahead else ()))
    return todo.ops


def _forward(todo: _List, layers: Sequence[int], head: bool, batch: int) -> None:
    before: tuple[tuple[str, int], ...] = ()
    for layer in list(layers) + ([HEAD] if head else []):
        todo.put("own_f", layer, batch, *before)
        if todo.routed(layer):
            todo.put("dispatch", layer, batch, ("own_f", layer))
            todo.put("experts_f", layer, batch, ("dispatch", layer))
            todo.put("combine", layer, batch, ("experts_f", layer))
        before = (("combine", layer),)
