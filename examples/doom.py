"""Game frames with depth, class and surface-normal labels: levels of Freedoom, which the vizdoom package carries."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

CLASSES = ("wall, sky", "floor", "ceiling", "monster", "decoration", "item")
LEVELS = [("freedoom2", f"map{i:02}") for i in range(1, 33)] + [
    ("freedoom1", f"e{episode}m{mission}") for episode in range(1, 5) for mission in range(1, 10)
]
SIZE = 60, 80  # of the frames given out; the game renders 120 x 160
UNITS_PER_STEP = 7.75  # of the 8-bit depth buffer, in map units
WALL_UNITS = 7.14, 6.27  # for each step, and at step 0: the depth of walls, as their places in the level have it
_DECORATION = {"Gore", "Decoration", "LightSource", "Explosive"}

Frames = dict[str, np.ndarray]
Splits = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def load(folder: Path, frames_per_level: int, test_levels: int = 20, seed: int = 0) -> Splits:
    """Frames of training levels and of test levels: dicts of tensors, made once and kept in `folder`.

    Returns:
        Two dicts with ``image`` (frames, 3, 60, 80) in [0, 1], ``primary`` (frames, 1, 60, 80) log of depth / 100
        map units, ``aux`` (frames, 60, 80) class numbers, ``normals`` (frames, 3, 60, 80) unit vectors in the camera's
        frame (right, up, forward), zeros on things, on the sky and on walls that were not found in the level.
    """
    file = folder / f"doom-{frames_per_level}-{seed}-n.pt"
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
        "normals": F.normalize(joined["normals"].float(), dim=1),
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
    game.set_sectors_info_enabled(True)
    variables = ("POSITION_X", "POSITION_Y", "CAMERA_POSITION_Z", "ANGLE")
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in variables])
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
    depth, label = depth[::2, ::2].copy(), label[::2, ::2].copy()
    normals = wall_normals(walls(state.sectors), WALL_UNITS[0] * depth + WALL_UNITS[1], state.game_variables)
    normals *= label == 0
    normals[1] += 1.0 * (label == CLASSES.index("floor")) - (label == CLASSES.index("ceiling"))
    codes = (127 * normals).round().astype(np.int8)
    return {"image": small.transpose(2, 0, 1), "depth": depth, "label": label, "normals": codes}


def walls(sectors: Iterable[Any]) -> np.ndarray:
    """Walls of a level: x and y of one end, x and y of the other, bottom and top; ``(walls, 6)``, in map units."""
    sides: dict[Any, list[tuple[float, float]]] = {}
    for sector in sectors:
        for line in sector.lines:
            ends = tuple(sorted([(line.x1, line.y1), (line.x2, line.y2)]))
            sides.setdefault(ends, []).append((sector.floor_height, sector.ceiling_height))
    found = []
    for (start, end), heights in sides.items():
        floors, ceilings = zip(*heights)
        spans = [heights[0]] if len(heights) == 1 else [(min(floors), max(floors)), (min(ceilings), max(ceilings))]
        found += [(*start, *end, bottom, top) for bottom, top in spans if bottom < top]
    return np.array(found)


def wall_normals(walls: np.ndarray, depth: np.ndarray, camera: Iterable[float]) -> np.ndarray:
    """Normals of the walls that rays through the pixels meet at the depth seen there; zeros where they meet none.

    Args:
        walls: ``(walls, 6)``, as `walls` gives them.
        depth: Along the camera's axis, in map units; ``(h, w)``, of every second pixel of every second row.
        camera: Its x, y, z in map units, and where it looks in degrees, anticlockwise from x.

    Returns:
        ``(3, h, w)``: right, up, forward in the camera's frame.
    """
    *place, height, yaw = camera
    sine, cosine = np.sin(np.deg2rad(yaw)), np.cos(np.deg2rad(yaw))
    to_camera = np.array([[sine, cosine], [-cosine, sine]])  # right, forward
    start, end = (walls[:, :2] - place) @ to_camera, (walls[:, 2:4] - place) @ to_camera
    along = end - start
    rows, columns = (np.arange(size) for size in depth.shape)
    right = ((2 * columns + 0.5) / len(columns) - 1)[:, None]  # of each ray, for 1 forward: 90 degrees across
    up = ((len(rows) - 0.5 - 2 * rows) / len(columns) / 1.2)[:, None, None]  # pixels are higher than they are wide

    with np.errstate(divide="ignore", invalid="ignore"):
        part = (right * start[:, 1] - start[:, 0]) / (along[:, 0] - right * along[:, 1])
        met = start[:, 1] + part * along[:, 1]
    met = np.where((part >= 0) & (part <= 1) & (met > 0), met, np.inf)  # depth at which a column meets a wall
    nearest = met.argsort(1)[:, : max(1, np.isfinite(met).sum(1).max())]
    met = np.take_along_axis(met, nearest, 1)
    z, slack = height + up * met, 2 + met / 64
    inside = (z > walls[nearest, 4] - slack) & (z < walls[nearest, 5] + slack)
    off = np.where(inside, np.abs(met - depth[:, :, None]), np.inf)
    wall = nearest[columns, off.argmin(2)]

    normals = np.stack([-along[:, 1], along[:, 0]]) / np.hypot(*along.T)
    normals *= -np.sign((normals * start.T).sum(0))  # towards the camera
    flat = normals[:, wall] * (off.min(2) < 4.5 + depth / 100)
    return np.stack([flat[0], np.zeros_like(depth, dtype=float), flat[1]])
