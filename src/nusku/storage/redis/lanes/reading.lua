-- Reading messages.

function operations.page(numbers_, generation, after, limit, held, delayed, without)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local answer = { OK, lane.now, 0, 0 }
    local backlog = lane.due <= lane.now
    local position, budget, bytes, got = after, STEP, BYTES, 0
    while got < limit do
        local want = min(limit - got, 100)
        local found = following(lane, position, want, held or delayed or backlog)
        local places, states, dead, dead_states = {}, {}, {}, {}
        for i, state in ipairs(read(lane, '', found)) do
            if not alive(lane, state) then
                dead[#dead + 1], dead_states[#dead_states + 1] = found[i], state
            else
                local visible, claim = hidden_of(state)
                local shown = visible <= lane.now
                if not shown then
                    if claim == NOBODY then shown = delayed else shown = held end
                end
                if shown and (not without or client_of(state) ~= without) then
                    places[#places + 1], states[#states + 1] = found[i], state
                end
            end
        end
        bury(lane, dead, dead_states)
        put(answer, lane, places, states, true)
        got = got + #places
        for i = #answer - 3 * #places + 3, #answer, 3 do bytes = bytes - #answer[i] end
        if #found < want then break end
        position = tonumber(found[#found])
        budget = budget - #found
        if (budget <= 0 or bytes <= 0) and got < limit then
            answer[4] = position
            break
        end
    end
    if got == 0 and answer[4] == 0 and lane.due <= lane.now then answer[1] = AGAIN end
    answer[3] = due_of(lane)
    return answer
end

function operations.get(numbers_, generation, positions)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local found, places, states = {}, {}, {}
    for _, position in ipairs(positions) do
        if position > 0 and position < lane.next then found[#found + 1] = digits(position) end
    end
    for i, state in ipairs(read(lane, '', found)) do
        if alive(lane, state) then
            places[#places + 1], states[#states + 1] = found[i], state
        end
    end
    return put({ OK, lane.now }, lane, places, states, true)
end

function operations.count(numbers_, generation)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local unheld, held, delayed = numbers(lane)
    local answer = { OK, lane.now, unheld, held, delayed }
    if unheld + held + delayed == 0 then return answer end
    local first, first_state = outermost(lane, false)
    if first == nil then return { AGAIN } end
    local last, last_state = outermost(lane, true)
    if last == nil then return { AGAIN } end
    return put(answer, lane, { first, last }, { first_state, last_state }, true)
end
