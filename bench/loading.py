"""Reading images of folders for training: against decoding alone, and memory as the data set grows.

    uv run python bench/loading.py FOLDER     # any images below it; they are linked to make 1,000 and 20,000 files

For each size: images per second with 0, 1 and 2 loaders, of decoding alone in as many processes, and the peak memory
of all processes. Medians of alternated runs.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from certkd.config.settings import DataConfig
from certkd.data import sources
from certkd.data.folders import View
from certkd.data.images import images_below
from certkd.data.loading import Batches, loaded
from certkd.data.splits import FileImages, Split, Subset

BATCH, IMAGES = 64, 1024


def enlarged(folder: Path, count: int, out: Path) -> None:
    """Link the images below a folder again and again, under other names, in ten classes."""
    there = [path.resolve() for path in images_below(folder)]
    for split, images in (("train", count), ("val", 10)):
        for number in range(images):
            link = out / split / f"class{number % 10}" / f"{number}{there[0].suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(there[number % len(there)])


def decoded(work: tuple[View, list[Path]]) -> int:
    """Decode images and drop them."""
    view, paths = work
    return sum(view(path).shape[0] > 0 for path in paths)


def files_of(images: object) -> FileImages:
    """Return the images on disk below parts of them."""
    while isinstance(images, Subset):
        images = images.images
    assert isinstance(images, FileImages)
    return images


def speeds(split: Split, loaders: int) -> tuple[float, float]:
    """Images per second of loading, and of decoding alone in as many processes."""
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:IMAGES]
    parts = list(rows.split(BATCH))
    started = time.perf_counter()
    for _ in loaded(Batches(split, parts), loaders, torch.device("cpu")):
        pass
    loading = len(rows) / (time.perf_counter() - started)
    files = files_of(split.images)
    work = [(files.read, [files.paths[row] for row in part.tolist()]) for part in parts]
    started = time.perf_counter()
    if loaders:
        with ProcessPoolExecutor(loaders) as pool:
            list(pool.map(decoded, work))
    else:
        list(map(decoded, work))
    return loading, len(rows) / (time.perf_counter() - started)


def main() -> None:
    """Print a Markdown table; each size is measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.measure:
        split = sources.load(DataConfig(name=str(given.folder), image_size=224)).splits["train"]
        for loaders in (0, 1, 2):
            found = [speeds(split, loaders) for _ in range(given.repeats)]
            mine, alone = (statistics.median(side) for side in zip(*found, strict=True))
            peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            print(f"| {len(split):,} | {loaders} | {mine:.0f} | {alone:.0f} | {mine / alone:.2f} | {peak / 1024:.0f} |")
        return
    print("| images | loaders | loaded per second | decoded per second | ratio | peak memory, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for count in (1000, 20_000):
        with tempfile.TemporaryDirectory() as folder:
            enlarged(given.folder, count, Path(folder))
            subprocess.run([sys.executable, __file__, folder, "--measure", f"--repeats={given.repeats}"], check=True)


if __name__ == "__main__":
    main()
