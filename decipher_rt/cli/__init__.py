"""The command line: one file a command, imported only when it is called or listed."""

from __future__ import annotations

import importlib
import io
import os
import sys
import threading
from contextlib import suppress
from typing import Any

import click

from decipher_rt import __version__
from decipher_rt.errors import DecipherError, one_line

_COMMANDS = {
    "infer": "decipher_rt.cli.infer:infer",
    "embed": "decipher_rt.cli.embed:embed",
    "search": "decipher_rt.cli.search:search",
    "demo": "decipher_rt.cli.demo:demo",
    "inspect": "decipher_rt.cli.inspect:inspect",
    "verify": "decipher_rt.cli.verify:verify",
    "profile": "decipher_rt.cli.profile:profile",
    "doctor": "decipher_rt.cli.doctor:doctor",
}


class LazyGroup(click.Group):
    """Commands by name; those of train and export are found as entry points, so that the runtime imports neither."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the runtime's commands, then those of other parts."""
        from importlib.metadata import entry_points

        return [*_COMMANDS, *sorted(entry.name for entry in entry_points(group="decipher_rt.commands"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name in _COMMANDS:
            module, name = _COMMANDS[cmd_name].split(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        from importlib.metadata import entry_points  # takes as long as all else that --help imports

        for entry in entry_points(group="decipher_rt.commands", name=cmd_name):
            loaded: click.Command = entry.load()
            return loaded
        return None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; end quietly where the reader of its output has gone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # here, as click drops what the command still holds, and waits for its readers
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _leave_readers(1)
            return 1


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  decipher-rt infer series/
  decipher-rt infer study/ -o out --png
  decipher-rt doctor

Research tool, not a medical device.""",
)
@click.version_option(__version__, prog_name="decipher-rt")
def cli() -> None:
    """Run 3D MRI foundation models beside the scanner: DICOM in, embeddings and decoder answers out."""


def main() -> None:
    """Run the command line. What the user can mend ends in one line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a description may hold what this terminal has no letter for
    try:
        status: Any = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "decipher-rt"
        status = _fail(f"{error.format_message().rstrip('.')}; see '{command} --help'", error.exit_code)
    except click.ClickException as error:
        status = _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        status = _fail("interrupted", 130)
    except DecipherError as error:
        status = _fail(str(error), 2)
    except ImportError as error:
        if _caused_by_interrupt(error):
            status = _fail("interrupted", 130)
        elif isinstance(error, ModuleNotFoundError) and (advice := _what_to_install(error)):
            status = _fail(advice, 2)
        else:
            raise
    except MemoryError:
        status = _fail("out of memory; close other programs, or use a machine with more", 2)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        status = _fail("out of memory; make batches or sizes smaller, or use a machine with more", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _fail(f"{where}{error.strerror or error}", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> int:
    click.echo(f"decipher-rt: {one_line(message)}", err=True)
    _leave_readers(status)
    return status


def _leave_readers(status: int) -> None:
    """End the process at once where a thread still reads in advance what nobody will ask for: it may take minutes."""
    pipeline = sys.modules.get("decipher_rt.pipeline")
    if pipeline and any(thread.name.startswith(pipeline.AHEAD) for thread in threading.enumerate()):
        with suppress(OSError):
            sys.stdout.flush()
        if decoder := sys.modules.get("decipher_rt.dicom.decode_process"):
            decoder.kill_child()
        os._exit(status)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, which is not imported here, found no memory: on a GPU it has a class for that, on the CPU none."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: extension modules report one that reaches their import as ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _what_to_install(error: ModuleNotFoundError) -> str | None:
    """Name the extra that holds a missing package; None where the package is not one of an extra."""
    extras = {"torch": "train,export", "nilearn": "train", "scipy": "train", "yaml": "train", "safetensors": "train"}
    extras |= {"tokenizers": "text", "usearch": "text"}
    extras |= {"onnx": "export", "onnxscript": "export", "openvino": "openvino"}
    module = (error.name or "").partition(".")[0]
    if module not in extras:
        return None
    return f"this command needs {module}; install it with: pip install 'decipher-rt[{extras[module]}]'"
