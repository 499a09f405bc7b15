# Runs in the guest (see shell.py): reads a number and a script, base64, a line;
# answers each with the number, the exit status and what it printed, base64.
echo ready
while read -r number script; do
    answer=$(
        bash -c "$(base64 --decode <<<"$script")" </dev/null 2>&1 | base64 --wrap=0
        exit "${PIPESTATUS[0]}"
    )
    echo "$number $? $answer"
done
