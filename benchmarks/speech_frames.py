"""Turn the free spoken digits into log-mel frames by speaker: `python benchmarks/speech_frames.py fsdd OUT`.

OUT gets train.jsonl.gz and test.jsonl.gz, a recording a line: `speaker`, `digit` and `frames`, a list of 32 channels
for each 10 ms. Recordings 0 to 4 of each speaker and digit are the test, as the data set's authors have it.
"""

import gzip
import io
import json
import sys
import wave
import zipfile
from pathlib import Path

import numpy as np

RATE, WINDOW, HOP, POINTS, CHANNELS = 8000, 200, 80, 256, 32


def mel_bands():
    """Triangles (CHANNELS, bins) from 60 Hz to half the rate, evenly spaced in mel (O'Shaughnessy 1987)."""
    mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + RATE / 2 / 700), CHANNELS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    at = np.fft.rfftfreq(POINTS, 1 / RATE)
    rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def frames(sound):
    """Log-mel energies (T, CHANNELS) of 16-bit samples."""
    samples = np.frombuffer(sound, "<i2") / 2**15
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.hanning(WINDOW)
    return np.log(np.abs(np.fft.rfft(windows, POINTS)) ** 2 @ mel_bands().T + 1e-6)


def main(folder, out):
    rows = {"train": [], "test": []}
    for path in sorted(Path(folder).glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
                digit, speaker, take = Path(name).stem.split("_")
                with wave.open(io.BytesIO(archive.read(name))) as file:
                    if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                        sys.exit(f"{path}, {name}: not {RATE} Hz, mono, 16 bit")
                    found = frames(file.readframes(file.getnframes()))
                row = {"speaker": speaker, "digit": digit, "frames": np.round(found, 3).tolist()}
                rows["test" if int(take) < 5 else "train"].append(row)
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, found in rows.items():
        with gzip.open(Path(out) / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(f"{split}: {len(found)} recordings")


if __name__ == "__main__":
    main(*sys.argv[1:])
