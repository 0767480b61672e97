"""The processes of a command: how one starts, how it ends, and sums over several."""

from .launch import begin

begin()
