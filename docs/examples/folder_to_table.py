"""Analyse a folder of images with one model, and make one table of all finds.

Run it as ``python docs/examples/folder_to_table.py OUT``. The images are made on the spot and the model is the embedded
`digits`; the extra `demo` brings the handwriting. Started again, it analyses only what is missing.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import cv2

import coarse2fine as c2f
from coarse2fine.demo.digit_scene import DigitScene
from coarse2fine.tiling.geometry import Box


def make_folder(folder: Path, count: int = 3, side: int = 768) -> None:
    """Write scenes of digits, and a file that is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = DigitScene(side, side, digits=20, clutter=80, seed=number, handwriting="held-out")
        cv2.imwrite(str(folder / f"scene-{number}.png"), scene.block(Box(0, 0, side, side)))
    (folder / "broken.png").write_bytes(b"no image")


def main(out: Path) -> None:
    """Analyse the folder; results and the table ``finds.csv`` are written to `out`."""
    make_folder(out / "images")
    batch = c2f.analyze_folder(out / "images", out / "results", "digits", workers=1)
    for record in batch.failed:
        print("failed:", record.name, record.error)

    rows = []
    for path in sorted((out / "results").glob("*/regions.geojson")):
        for feature in json.loads(path.read_text("utf-8"))["features"]:
            properties = feature["properties"]
            rows.append([path.parent.name, properties["classification"]["name"], properties["measurements"]["score"]])
    with (out / "finds.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "class", "score"], *rows])
    print(f"{len(rows)} finds in {len({row[0] for row in rows})} images: {out / 'finds.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits"))
