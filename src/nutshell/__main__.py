from nutshell.cli import main

main()
