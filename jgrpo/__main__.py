"""`jgrpo`, and `python -m jgrpo`."""

from jgrpo.pages import with_kept_pages


def main() -> int:
    """Runs a command; returns its exit code."""
    with_kept_pages()
    from jgrpo import cli  # after: it imports jax

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
