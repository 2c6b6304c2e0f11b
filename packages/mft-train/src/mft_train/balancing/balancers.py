"""The rules that turn probe losses into task weights: one signature, one dict, one convention.

A rule is a pure function `rule(state, probe_losses, settings) -> (shares, new_state)`. A state is a dict of JSON values
that comes back bit for bit from a file; `{}` is the state before the first update. `probe_losses[k]` is task k's mean
token loss in nats on its probe rows, None if this update does not measure it or none of their tokens is supervised.
Shares are at least 0 and sum to one; `task_weights` makes positive weights of them that sum to the number of tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mft_train.balancing.coba import coba
from mft_train.balancing.famo import famo
from mft_train.balancing.focal import focal
from mft_train.balancing.self_paced import self_paced
from mft_train.balancing.static import static

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mft_train.config.loss_config import LossConfig

    State = dict[str, Any]
    Losses = Sequence[float | None]
    Rule = Callable[[State, Losses, Any], tuple[list[float], State]]


RULES: dict[str, Rule] = {"static": static, "self_paced": self_paced, "coba": coba, "famo": famo, "focal": focal}


def task_weights(
    loss: LossConfig, task_names: Sequence[str], state: State, probe_losses: Losses
) -> tuple[list[float], State]:
    """The weight of each task, in the order of `task_names`, and the state after this update.

    Weights are positive and sum to the number of tasks under every balancer. Under all but `static` each is at least
    `weight_floor`.
    """
    if loss.balancer == "static":
        shares, state = static(state, probe_losses, [loss.task_weights.get(name, 1.0) for name in task_names])
        return [len(shares) * share for share in shares], state
    shares, state = RULES[loss.balancer](state, probe_losses, getattr(loss, loss.balancer))
    floor = loss.weight_floor
    return [floor + (1 - floor) * len(shares) * share for share in shares], state
