"""The processes of a command: how one starts, how it ends, and sums over several."""

from .launch import leave_current_folder_out

leave_current_folder_out()
