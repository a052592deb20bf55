"""`python -m jaxresnet` with `summary`, `report FOLDER`, `convert SOURCE TARGET` or `import FOLDER`."""

from jaxresnet.cli.commands import main

if __name__ == "__main__":
    main()
