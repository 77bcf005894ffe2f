# Asks the program itself, so that it never differs from what the program takes.
. <(sterna completion bash)
