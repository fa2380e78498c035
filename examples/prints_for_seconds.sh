#!/bin/sh
# Succeeds after four seconds; each line is in the log as soon as it is printed.
for number in 1 2 3 4 5 6 7 8; do
    echo "line $number of 8"
    sleep 0.5
done
echo "all done"
