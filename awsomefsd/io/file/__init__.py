"""The bytes of the files of one mount, from dirty to durable."""
