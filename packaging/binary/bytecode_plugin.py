"""Nuitka plugin: which packages are compiled to C and which are carried as bytecode.

Our own modules are compiled, and the small packages around C libraries beside them (some look up their own version when they are imported,
which Nuitka answers while it compiles).  Everything else runs a few times a second at most: as bytecode it behaves exactly as in the tests,
and leaves out most of the time and half of the size of a build.

Nuitka 4.3.3 cannot copy its node for memoryview(x): the child is called `object` and the argument of its constructor `object_arg`, and it
ends with a NuitkaNodeError.  Here the constructor takes both names.
"""

from nuitka.plugins.PluginBase import NuitkaPluginBase

BYTECODE = {
    "annotated_types", "attr", "attrs", "cffi", "click", "cryptography", "dotenv", "google", "grpc", "grpc_health", "grpc_reflection",
    "idna", "outcome", "prometheus_client", "pydantic", "pydantic_core", "pydantic_settings", "rich", "sniffio", "sortedcontainers", "trio",
    "typing_extensions", "typing_inspection", "yaml",
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
        return "bytecode" if str(module_name.getTopLevelPackageName() or module_name) in BYTECODE else None


def _mend_memoryview():
    from nuitka.nodes.HardImportNodesGenerated import ExpressionBuiltinsMemoryviewCallBase as Node

    make = Node.__init__

    def make_or_copy(self, object_arg=None, source_ref=None, **by_name):
        make(self, by_name["object"] if object_arg is None else object_arg, source_ref)

    Node.__init__ = make_or_copy
