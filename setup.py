"""All is in pyproject.toml but this: a wheel without compiled parts is tagged as pure."""

from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class Wheel(bdist_wheel):
    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        built = Path(self.get_finalized_command("build").build_lib)
        self.root_is_pure = not any(path.suffix in (".so", ".pyd") for path in built.rglob("*"))
        super().run()


setup(cmdclass={"bdist_wheel": Wheel})
