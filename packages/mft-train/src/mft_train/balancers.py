"""The rules that turn probe losses into task weights: one signature, one dict, one convention.

A rule is a pure function `rule(state, probe_losses, settings) -> (shares, new_state)`. A state is a dict of JSON values
that comes back bit for bit from a file; `{}` is the state before the first update. `probe_losses[k]` is task k's mean
token loss in nats on its probe rows, None if it has no supervised token there. Shares are at least 0 and sum to one;
`task_weights` makes positive weights of them that sum to the number of tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mft_train.coba import coba
from mft_train.famo import famo
from mft_train.self_paced import self_paced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mft_train.config import FocalConfig, LossConfig

    State = dict[str, Any]
    Losses = Sequence[float | None]
    Rule = Callable[[State, Losses, Any], tuple[list[float], State]]


def static(state: State, _probe_losses: Losses, settings: Sequence[float]) -> tuple[list[float], State]:
    """The given weights as shares, whatever the losses are."""
    return [weight / sum(settings) for weight in settings], state


def focal(state: State, probe_losses: Losses, settings: FocalConfig) -> tuple[list[float], State]:
    """Shares proportional to (1 - P_k)^gamma, P_k = exp(-l_k) the geometric mean probability of task k's tokens.

    A task that is not measured now keeps its last loss, which is the state; one never measured counts as the mean.
    """
    last = state.get("losses", [None] * len(probe_losses))
    losses = [old if loss is None else loss for old, loss in zip(last, probe_losses, strict=True)]
    known = [loss for loss in losses if loss is not None]
    fallback = sum(known) / len(known) if known else 0.0
    scores = (-np.expm1([-(fallback if loss is None else loss) for loss in losses])) ** settings.gamma
    total = scores.sum()
    shares = scores / total if total > 0 else np.full(len(losses), 1 / len(losses))
    return shares.tolist(), {"losses": losses}


RULES: dict[str, Rule] = {"static": static, "self_paced": self_paced, "coba": coba, "famo": famo, "focal": focal}
# Rules that compare the losses of two updates, so that both must be measured on the same rows.
SAME_ROWS = {"famo"}


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
