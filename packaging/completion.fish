sterna completion fish | source
