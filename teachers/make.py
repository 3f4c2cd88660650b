"""The teachers that a config asks for: the one table from target to teacher."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lib import Config, log
from teachers.base import Teacher
from teachers.depth import DptTeacher
from teachers.features import VideoSwinTeacher, average_teacher, random_teacher, timm_teacher
from teachers.flow import dis_of_clip, flow_teacher
from teachers.vq import DalleTeacher

TEACHERS: dict[str, Callable[[Config, dict[str, Any]], Teacher]] = {
    "3d_feature": VideoSwinTeacher.from_config,
    "2d_feature": timm_teacher("image_teacher", "swin_base_patch4_window7_224"),
    "2d_clip_feature": timm_teacher("clip_teacher", "vit_base_patch32_clip_224"),
    "optical_flow": flow_teacher,
    "depth": DptTeacher.from_config,
    "vq": DalleTeacher.from_config,
    "clip_visible": timm_teacher("clip_teacher", "vit_base_patch32_clip_224"),
    "latent": average_teacher,
    "random_feature": random_teacher,
}
WITHOUT_WEIGHTS = ("latent", "random_feature")  # whose teachers have none to load


def worker_truths(config: Config) -> dict[str, Callable[[Tensor], Tensor]]:
    """Of the targets whose truth needs no network: what the data-loading workers compute from a clip.

    On a device each step would wait for the processor's flow.
    """
    chosen = "mvm" in config.pretrain_tasks and "optical_flow" in config.mvm_target
    return {"optical_flow": dis_of_clip} if chosen and config.flow_teacher == "dis" else {}


def make_teachers(config: Config) -> Mapping[str, Teacher]:
    """The teachers of the chosen targets, and of no other, with their weights.

    Raises `UserError` where weights are missing: `teacher_init` "random" has to be asked for.
    """
    options = {"batch": config.teacher_batch, "device": config.teacher_device}
    wanted = [name for name in config.mvm_target if name in TEACHERS]
    teachers = {name: TEACHERS[name](config, options) for name in wanted}
    random = [
        name
        for name, teacher in teachers.items()
        if teacher.network is not None and name not in WITHOUT_WEIGHTS
    ]
    if config.teacher_init == "random" and random:
        log.warning(
            "teacher_init random: the teachers of %s have random weights; the run only tests the program",
            ", ".join(random),
        )
    return teachers
