"""Nuitka plugin: which modules are compiled to C and which are carried as bytecode.

Compiled is what every request of a mount passes through: fuse/, vfs/, keeper/ and io/.  The rest runs as bytecode, exactly as in the
tests: a build of minutes instead of an hour, and half as large.  base/program.py is compiled because it asks whether it is; so are the two
packages that look up their own version when they are imported, which Nuitka answers while it compiles.

Nuitka 4.3.3 cannot copy its node for memoryview(x): the child is called `object` and the argument of its constructor `object_arg`, and it
ends with a NuitkaNodeError.  Here the constructor takes both names.
"""

from nuitka.plugins.PluginBase import NuitkaPluginBase

OURS = {"__main__", "entry", "awsomefsd", "awsomefsd.base.wait", "awsomefsd.base.program", "crc32c", "xxhash"}
FOLDERS = ("awsomefsd.fuse", "awsomefsd.io", "awsomefsd.keeper", "awsomefsd.vfs")
PACKAGES = {
    "annotated_types", "attr", "attrs", "awsomefsd", "cffi", "click", "crc32c", "cryptography", "dotenv", "google", "grpc", "grpc_health",
    "grpc_reflection", "idna", "lmdb", "msgspec", "outcome", "prometheus_client", "pydantic", "pydantic_core", "pydantic_settings",
    "pyfuse3", "rich", "sniffio", "sortedcontainers", "trio", "typing_extensions", "typing_inspection", "xxhash", "yaml",
    "ifaddr", "zeroconf",
}  # fmt: skip


class BytecodePlugin(NuitkaPluginBase):
    plugin_name = "awsomefsd-bytecode"
    plugin_desc = "Carry foreign packages as bytecode."

    _mended = False

    def decideCompilation(self, module_name):
        if not self._mended:  # the nodes cannot be imported before Nuitka has read its options
            self._mended = True
            _mend_memoryview()
        if "-" in str(module_name):  # code of Nuitka's own around the import of a module
            return None
        name = str(module_name)
        compiled = name in OURS or name in FOLDERS or name.startswith(tuple(f"{folder}." for folder in FOLDERS))
        return None if compiled or not _shipped(name) else "bytecode"


def _shipped(name):
    """Not of the standard library and not Nuitka's own, which decides about those."""
    return name.partition(".")[0] in PACKAGES


def _mend_memoryview():
    from nuitka.nodes.HardImportNodesGenerated import ExpressionBuiltinsMemoryviewCallBase as Node

    make = Node.__init__

    def make_or_copy(self, object_arg=None, source_ref=None, **by_name):
        make(self, by_name["object"] if object_arg is None else object_arg, source_ref)

    Node.__init__ = make_or_copy
