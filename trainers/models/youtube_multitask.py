"""YouTube's ranking: MMoE for what engages and what satisfies, and a tower that takes the blame.

Zhao et al., *Recommending What Video to Watch Next: A Multitask Ranking System*, RecSys 2019. Tasks
of engagement (clicks; how much was watched) and of satisfaction (likes; ratings) are classified by
log loss or regressed by squared loss, over the experts and gates of `mmoe`. What stands above is
clicked more, whatever it is, so a shallow tower of position and scenario is added to the outputs
of engagement in training, and left out in serving:

    y_k = tower_k(f_k(x)) + shallow(position, scenario)      k a task of engagement

Of the positions some are dropped in training, so that the tower below does not rely on them. Scores
of tasks are fused by weights afterwards.

What differs: the scenario stands for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from streaming.errors import ConfigError
from trainers.models import RANKING, register
from trainers.models.mmoe import MMoE
from trainers.models.parts.position_bias import PositionConfig
from trainers.tasks import Task


@register("youtube_multitask", RANKING)
class YouTubeMultitask(MMoE):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(MMoE.Config):
        """Those of the tasks that are named in `engagement` have the shallow tower, unless
        `position` says something else.
        """

        tasks: Mapping[str, Task] = field(
            default_factory=lambda: {
                "click": Task(),
                "watch": Task("squared", after="click"),
                "like": Task(after="click"),
            }
        )
        engagement: tuple[str, ...] = ("click", "watch")
        position: PositionConfig = field(default_factory=lambda: PositionConfig(how="shallow"))

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.engaging:
                raise ConfigError(
                    f"engagement = {self.engagement}: none is a task; these are"
                    f" {', '.join(self.tasks)}"
                )

        @property
        def engaging(self) -> tuple[str, ...]:
            return tuple(name for name in self.engagement if name in self.tasks)

    def __init__(self, config: Config) -> None:
        position = config.position
        if position.how == "shallow" and not position.tasks:
            position = replace(position, tasks=config.engaging)
        super().__init__(replace(config, position=position))
