"""Reading files that somebody else made."""

from train.shared.flags import UserError


def parse(path, read, *arguments):
    """Return read(*arguments); any failure becomes a UserError about the file `path`."""
    try:
        return read(*arguments)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put it there or name another --source.") from None
    except Exception as error:  # parsers of broken files raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): repair or replace it.") from None
