"""Trains as a config says: `python train.py CONFIG [key=value ...]`. See `--help`."""

from jgrpo.cli import train_main

if __name__ == "__main__":
    raise SystemExit(train_main())
