"""Rooms made by code: ray-cast frames with exact depth, classes and normals, for when no real frames can be had.

Colour, texture, light, pose and field of view are random in every scene, so that colour does not give the class away.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

CLASSES = ("floor", "ceiling", "wall", "sphere", "box", "cylinder")
SIZE = 60, 80
Array = np.ndarray
Splits = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@dataclass
class Hits:
    """The nearest surface along each ray so far; ``(rays,)`` or ``(rays, 3)``."""

    distance: Array
    normal: Array
    label: Array
    surface: Array

    def nearer(self, distance: Array, normal: Array, label: int, surface: int) -> None:
        """Take over the rays on which another surface is nearer, and in front of the camera."""
        nearer = (distance > 1e-3) & (distance < self.distance)
        self.distance = np.where(nearer, distance, self.distance)
        self.normal = np.where(nearer[:, None], normal, self.normal)
        self.label = np.where(nearer, label, self.label)
        self.surface = np.where(nearer, surface, self.surface)


def load(folder: Path, frames_per_level: int, train_levels: int = 48, test_levels: int = 20, seed: int = 0) -> Splits:
    """Frames of training rooms and of test rooms: dicts of tensors, made once and kept in `folder`.

    Returns:
        Two dicts with ``image`` (frames, 3, 60, 80) in [0, 1], ``primary`` (frames, 1, 60, 80) log of depth in metres,
        ``aux`` (frames, 60, 80) class numbers, ``normal`` (frames, 3, 60, 80) unit vectors in the camera's frame.
    """
    file = folder / f"rooms-{frames_per_level}-{train_levels}-{test_levels}-{seed}.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        seeds = [[seed, level] for level in range(train_levels + test_levels)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rooms = pool.map(partial(_room, frames_per_level), seeds)
            levels = list(tqdm(rooms, "rooms made", len(seeds)))
        torch.save([_join(levels[:train_levels]), _join(levels[train_levels:])], file)
    train, test = torch.load(file, weights_only=True)
    return train, test


def _join(levels: list[dict[str, Array]]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.concatenate([level[key] for level in levels])) for key in levels[0]}


def _room(frames: int, seed: list[int]) -> dict[str, Array]:
    """Frames of one room, from random places in it."""
    rng = np.random.default_rng(seed)
    size = rng.uniform([3, 3, 2.2], [8, 8, 3.5])
    things = [_thing(rng, size, number) for number in range(6, 6 + rng.integers(6, 13))]
    colours, scales = rng.uniform(0.1, 0.9, (20, 2, 3)), rng.uniform(1, 8, 20)
    lamp, ambient = rng.uniform(0.2, 0.8, 3) * size, rng.uniform(0.2, 0.5)
    shots = [_shot(rng, size, things, colours, scales, lamp, ambient) for _ in range(frames)]
    return {key: np.stack([shot[key] for shot in shots]) for key in shots[0]}


def _shot(rng, size, things, colours, scales, lamp, ambient) -> dict[str, Array]:  # type: ignore[no-untyped-def]
    eye = rng.uniform([0.4, 0.4, 1.0], size - [0.4, 0.4, 0.6])
    yaw, pitch, focal = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.15), rng.uniform(0.8, 1.4)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    camera = np.stack([right, np.cross(right, forward), forward])
    y, x = np.mgrid[1 : -1 : SIZE[0] * 1j, -SIZE[1] / SIZE[0] : SIZE[1] / SIZE[0] : SIZE[1] * 1j]
    rays = np.stack([x, y, np.full_like(x, focal * 1.5)], -1).reshape(-1, 3) @ camera
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    hits = Hits(np.full(len(rays), np.inf), np.zeros_like(rays), np.zeros(len(rays), int), np.zeros(len(rays), int))
    _walls(hits, eye, rays, size)
    for cast in things:
        cast(hits, eye, rays)
    points = eye + hits.distance[:, None] * rays
    waves = np.sin(scales[hits.surface][:, None] * (points + points[:, [1, 2, 0]])).prod(1)
    albedo = np.where((waves > 0)[:, None], colours[hits.surface, 0], colours[hits.surface, 1])
    to_lamp = lamp - points
    distance = np.linalg.norm(to_lamp, axis=1)
    diffuse = np.clip((hits.normal * to_lamp).sum(1) / distance, 0, 1) * 4 / (1 + distance**2)
    image = np.clip(albedo * (ambient + diffuse)[:, None] + rng.normal(0, 0.03, albedo.shape), 0, 1)
    depth = hits.distance * (rays @ forward)
    return {
        "image": image.reshape(*SIZE, 3).transpose(2, 0, 1).astype(np.float32),
        "primary": np.log(depth).reshape(1, *SIZE).astype(np.float32),
        "aux": hits.label.reshape(SIZE).astype(np.int64),
        "normal": (hits.normal @ camera.T).reshape(*SIZE, 3).transpose(2, 0, 1).astype(np.float32),
    }


def _walls(hits: Hits, eye: Array, rays: Array, size: Array) -> None:
    """The six inner sides of the room, which surround the camera."""
    for axis, side in ((axis, side) for axis in range(3) for side in (0, 1)):
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (side * size[axis] - eye[axis]) / rays[:, axis]
        normal = np.zeros(3)
        normal[axis] = 1 - 2 * side
        label = CLASSES.index("wall") if axis < 2 else CLASSES.index("ceiling" if side else "floor")
        hits.nearer(np.nan_to_num(distance, nan=-1), np.broadcast_to(normal, rays.shape), label, 2 * axis + side)


def _thing(rng: np.random.Generator, size: Array, surface: int) -> Callable[[Hits, Array, Array], None]:
    """A random object that stands on the floor, or a sphere that hangs anywhere."""
    place = rng.uniform([0.8, 0.8, 0], [size[0] - 0.8, size[1] - 0.8, 0])
    half, yaw = rng.uniform([0.15, 0.15, 0.2], [0.6, 0.6, 0.9]), rng.uniform(0, np.pi)
    kind = rng.integers(3)
    if kind == 0:
        centre = place + np.array([0, 0, rng.uniform(half[0], 1.6)])
        return lambda hits, eye, rays: _sphere(hits, eye, rays, centre, half[0], surface)
    if kind == 1:
        return lambda hits, eye, rays: _box(hits, eye, rays, place + np.array([0, 0, half[2]]), half, yaw, surface)
    return lambda hits, eye, rays: _cylinder(hits, eye, rays, place, half[0], 2 * half[2], surface)


def _sphere(hits: Hits, eye: Array, rays: Array, centre: Array, radius: float, surface: int) -> None:
    b, c = rays @ (eye - centre), ((eye - centre) ** 2).sum() - radius**2
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(-b - np.sqrt(b**2 - c), nan=-1)
    normal = (eye + distance[:, None] * rays - centre) / radius
    hits.nearer(distance, normal, CLASSES.index("sphere"), surface)


def _box(hits: Hits, eye: Array, rays: Array, centre: Array, half: Array, yaw: float, surface: int) -> None:
    turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    origin, directions = turn @ (eye - centre), rays @ turn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (-half - origin) / directions, (half - origin) / directions
    enter, leave = np.minimum(a, b), np.maximum(a, b)
    axis, distance = enter.argmax(1), enter.max(1)
    normal = -np.sign(directions) * (np.arange(3) == axis[:, None])
    distance = np.where(distance < leave.min(1), distance, -1)
    hits.nearer(distance, normal @ turn, CLASSES.index("box"), surface)


def _cylinder(hits: Hits, eye: Array, rays: Array, foot: Array, radius: float, height: float, surface: int) -> None:
    from_axis, flat = (eye - foot)[:2], rays[:, :2]
    a, b, c = (flat**2).sum(1), flat @ from_axis, (from_axis**2).sum() - radius**2
    with np.errstate(invalid="ignore", divide="ignore"):
        side = np.nan_to_num((-b - np.sqrt(b**2 - a * c)) / a, nan=-1)
        lid = np.nan_to_num((foot[2] + height - eye[2]) / rays[:, 2], nan=-1)
    z = eye[2] + side * rays[:, 2]
    normal = np.concatenate([(from_axis + side[:, None] * flat) / radius, np.zeros((len(rays), 1))], 1)
    hits.nearer(np.where((z > foot[2]) & (z < foot[2] + height), side, -1), normal, CLASSES.index("cylinder"), surface)
    on_lid = ((from_axis + lid[:, None] * flat) ** 2).sum(1) < radius**2
    up = np.broadcast_to([0.0, 0.0, 1.0], rays.shape)
    hits.nearer(np.where(on_lid, lid, -1), up, CLASSES.index("cylinder"), surface)
