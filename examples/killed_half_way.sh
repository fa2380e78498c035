#!/bin/bash -e
# Would take a minute, with a child in the background: a kill ends both.
sleep 60 &
echo "child $! sleeps in the background"
for second in $(seq 0 60); do
    echo "$((second * 100 / 60)) %"
    sleep 1
done
echo "never reached in the demo"
