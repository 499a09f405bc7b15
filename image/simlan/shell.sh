# Runs in the guest (see shell.py). Reads a number and a script in base64 a line;
# answers with the number, the exit status and the output in base64.
echo ready
while read -r number script; do
    answer=$(
        bash -c "$(base64 --decode <<<"$script")" </dev/null 2>&1 | base64 --wrap=0
        exit "${PIPESTATUS[0]}"
    )
    echo "$number $? $answer"
done
