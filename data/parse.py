"""Reading files that somebody else made: nothing in them is executed or trusted."""

from train.shared.flags import UserError

LARGEST_DATA = 8 * 2**30  # bytes of all images of a part


def parse(path, read, *arguments):
    """Return read(*arguments); any failure becomes a UserError about the file `path`."""
    try:
        return read(*arguments)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put it there or name another --source.") from None
    except Exception as error:  # parsers of broken files raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a whole file of its kind ({reason}): get it again."
        ) from None
