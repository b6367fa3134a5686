"""Trains as a config says: `python train.py CONFIG [key=value ...]`. See `--help`."""

from jgrpo.pages import with_kept_pages

if __name__ == "__main__":
    with_kept_pages()
    from jgrpo.cli import train_main

    raise SystemExit(train_main())
