"""Frames of a real game with depth and class labels: levels of Freedoom, which the vizdoom package carries."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

CLASSES = ("wall, sky", "floor", "ceiling", "monster", "decoration", "item")
LEVELS = [("freedoom2", f"map{i:02}") for i in range(1, 33)] + [
    ("freedoom1", f"e{episode}m{mission}") for episode in range(1, 5) for mission in range(1, 10)
]
SIZE = 60, 80  # of the frames given out; the game renders 120 x 160
UNITS_PER_STEP = 7.75  # of the 8-bit depth buffer, in map units
_DECORATION = {"Gore", "Decoration", "LightSource", "Explosive"}

Frames = dict[str, np.ndarray]
Splits = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def load(folder: Path, frames_per_level: int, test_levels: int = 20, seed: int = 0) -> Splits:
    """Frames of training levels and of test levels: dicts of tensors, made once and kept in `folder`.

    Returns:
        Two dicts with ``image`` (frames, 3, 60, 80) in [0, 1], ``primary`` (frames, 1, 60, 80) log of depth / 100
        map units, ``aux`` (frames, 60, 80) class numbers.
    """
    file = folder / f"doom-{frames_per_level}-{seed}.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(wad, name, frames_per_level, seed + i) for i, (wad, name) in enumerate(LEVELS)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            levels = list(tqdm(pool.map(_level, jobs), "levels rendered", len(jobs)))
        torch.save([{key: torch.from_numpy(array) for key, array in level.items()} for level in levels], file)
    levels = torch.load(file, weights_only=True)
    order = np.random.default_rng(seed).permutation(len(levels))  # split by level, never by frame
    return _join([levels[i] for i in order[test_levels:]]), _join([levels[i] for i in order[:test_levels]])


def _join(levels: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    joined = {key: torch.cat([level[key] for level in levels]) for key in levels[0]}
    depth = joined["depth"].float() * UNITS_PER_STEP
    return {
        "image": joined["image"].float().div(255),
        "primary": depth.clamp(min=UNITS_PER_STEP).div(100).log().unsqueeze(1),
        "aux": joined["label"].long(),
    }


def _level(job: tuple[str, str, int, int]) -> Frames:
    """Frames of one level, the same for the same seed."""
    wad, name, count, seed = job
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the game writes files of its own into the current folder
        try:
            frames = list(_play(wad, name, count, np.random.default_rng(seed)))
        finally:
            os.chdir(here)
    return {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


def _play(wad: str, name: str, count: int, rng: np.random.Generator) -> Iterator[Frames]:
    import vizdoom

    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(Path(vizdoom.__file__).parent / f"{wad}.wad"))
    game.set_doom_map(name)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    for switch in (game.set_depth_buffer_enabled, game.set_labels_buffer_enabled, game.set_objects_info_enabled):
        switch(True)
    for switch in (game.set_render_hud, game.set_render_weapon, game.set_render_crosshair, game.set_render_messages):
        switch(False)
    game.set_render_screen_flashes(False)
    game.set_window_visible(False)
    game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
    game.add_game_args("+sv_cheats 1 +cl_showsecretmessage 0 +con_midtime 0 +con_notifytime 0")
    game.set_seed(int(rng.integers(2**31)))
    game.init()
    for cheat in ("god", "notarget", "freeze"):
        game.send_game_command(cheat)
    given = 0
    for _ in range(100 * count):
        objects = game.get_state().objects
        place = objects[rng.integers(len(objects))]
        x, y = np.array([place.position_x, place.position_y]) + rng.normal(0, 48, 2)
        game.send_game_command(f"warp {x:.0f} {y:.0f}")
        game.make_action([float(rng.uniform(0, 360))], 2)
        frame = _frame(game.get_state())
        if frame is not None:
            given += 1
            yield frame
        if given == count:
            break
    game.close()


def _frame(state: Any) -> Frames | None:
    """One frame at half size, or None if the view is stuck in a wall, pitch dark, or its depth overflows."""
    depth, image, labels = state.depth_buffer, state.screen_buffer, state.labels_buffer
    horizon = depth.shape[0] // 2
    overflow = (depth[[0, -1]] > depth[horizon - 1 : horizon + 1].max(0)).mean()  # a near floor cannot be so far
    if np.median(depth) < 4 or image.mean() < 12 or overflow > 0.02:
        return None
    classes = np.zeros(256, dtype=np.uint8)
    for label in state.labels:
        kind = label.object_category
        classes[label.value] = 3 if kind == "Monster" else 4 if kind in _DECORATION else 5
    label = np.where(labels > 1, classes[labels], 0).astype(np.uint8)
    rows = np.arange(depth.shape[0])[:, None]
    label[(labels == 1) & (rows >= horizon)] = CLASSES.index("floor")
    label[(labels == 1) & (rows < horizon)] = CLASSES.index("ceiling")
    small = image.reshape(SIZE[0], 2, SIZE[1], 2, 3).mean((1, 3)).round().astype(np.uint8)
    return {"image": small.transpose(2, 0, 1), "depth": depth[::2, ::2].copy(), "label": label[::2, ::2].copy()}
