"""What the compiled binary runs."""

import sys

from awsomefsd.__main__ import main

sys.exit(main())
