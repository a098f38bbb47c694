"""Control-C at a chosen moment of a run, for the tests of the games and of the loop."""


def interrupting(patch, place, name, call, after):
    """Let the call with this number raise KeyboardInterrupt, before or after its work."""
    original, calls = getattr(place, name), [0]

    def interrupted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and not after:
            raise KeyboardInterrupt
        result = original(*args, **kwargs)
        if calls[0] == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(place, name, interrupted)
