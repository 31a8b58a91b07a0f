"""Thumbnails with the look of a film: each worker holds the table of colours, which takes a while to make.

The pictures are made by the example itself. Pillow makes the table by calling a function for each of 110,000 colours;
made once per worker, it serves for all pictures. With joblib alone it goes out with every task.

    python examples/images.py [--pictures 60] [--compare]
"""

import argparse
import tempfile
import time
from pathlib import Path

from joblib import Parallel, delayed
from PIL import Image, ImageFilter

from joblib_stateful import stateful_map


def film(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """Return what a colour becomes: warmer lights, deeper shadows."""
    light = 0.3 * red + 0.6 * green + 0.1 * blue
    curve = light * light * (3 - 2 * light)
    return tuple(min(1.0, max(0.0, 0.8 * c + 0.2 * curve * t)) for c, t in ((red, 1.1), (green, 1.0), (blue, 0.8)))  # type: ignore[return-value]


def colours() -> ImageFilter.Color3DLUT:
    return ImageFilter.Color3DLUT.generate(48, film)


class Thumbnails:
    """Makes small pictures in the colours of a film."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.colours = folder, colours()

    def __call__(self, path: Path) -> Path:
        return thumbnail(path, self.folder, self.colours)


def thumbnail(path: Path, folder: Path, look: ImageFilter.Color3DLUT) -> Path:
    small = folder / path.name
    with Image.open(path) as picture:
        picture.thumbnail((160, 160))
        picture.filter(look).save(small)
    return small


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Make pictures of the Mandelbrot set, each a little nearer."""
    paths = []
    for number in range(count):
        paths.append(folder / f"{number:04}.jpg")
        depth = 1.5 * 0.97**number
        gray = Image.effect_mandelbrot((640, 480), (-0.745 - depth, 0.113 - depth, -0.745 + depth, 0.113 + depth), 100)
        Image.merge("RGB", (gray, gray.rotate(120), gray.rotate(240))).save(paths[-1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--compare", action="store_true", help="do the same by joblib alone, and tell both times")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_pictures(folder, options.pictures)
        (folder / "small").mkdir()
        started = time.perf_counter()
        results = stateful_map(Thumbnails, paths, n_jobs=2, shared_kwargs={"folder": folder / "small"}, progress=True)
        n_bytes = sum(small.stat().st_size for small in results)
        seconds = time.perf_counter() - started
        print(f"{len(paths)} thumbnails of {n_bytes / len(paths) / 1000:.1f} kB each")
        if options.compare:
            (folder / "joblib").mkdir()
            started = time.perf_counter()
            look = colours()
            same = Parallel(n_jobs=2)(delayed(thumbnail)(path, folder / "joblib", look) for path in paths)
            joblib_seconds = time.perf_counter() - started
            assert sum(small.stat().st_size for small in same) == n_bytes  # noqa: S101 - that's what is to be shown
            print(f"joblib_stateful {seconds:.1f} s, joblib {joblib_seconds:.1f} s: ", end="")
            print(f"{joblib_seconds / seconds:.2f} times as long")


if __name__ == "__main__":
    main()
