"""Errors out of handlers."""

import inspect

import pyfuse3

from fusejournal.layer import replies
from fusejournal.layer.handlers import Handlers


def test_every_handler_is_made_in_one_place() -> None:
    """Where errors become replies: another one would end the layer."""
    overridden = {
        name: method
        for name, method in vars(Handlers).items()
        if inspect.iscoroutinefunction(getattr(pyfuse3.Operations, name, None))
    }
    assert len(overridden) > 20
    elsewhere = {
        name
        for name, method in overridden.items()
        if inspect.unwrap(method) is method or method.__code__.co_filename != replies.__file__
    }
    assert elsewhere == {"forget"}  # which has no reply, and passes nothing on
