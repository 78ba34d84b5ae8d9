-- Claims.

function operations.claim(numbers_, generation, version, limit, ttl, grace, max_count, claim)
    local lane = current(numbers_[1], generation, version)
    if not lane then return { STALE } end
    enter(lane)
    local places, states, spent = free(lane, limit, max_count)
    if not places then return { AGAIN } end
    local answer = { OK, lane.now, due_of(lane), spent }
    if #places == 0 then return answer end
    local ends, extended = lane.now + ttl * 1000, lane.now + (ttl + grace) * 1000
    local hold, ends_text = pack(HOLD, ends, lane.now, ttl, claim), HELD .. digits(ends)
    local removed, scores, fields = {}, {}, {}
    for i, place in ipairs(places) do
        local state = states[i]
        local count = max_count and unpack_('>I4', state, 21) + 1
        local n, m = #scores, #fields
        removed[i] = place
        scores[n + 1], scores[n + 2] = HIDDEN .. place, 'u' .. place
        scores[n + 3], scores[n + 4] = ends_text, 'h' .. place
        if expires_of(state) < ends then
            scores[n + 5], scores[n + 6] = EXPIRY .. digits(extended), 'e' .. place
            state = restated(state, hold, extended, ttl + grace, count)
        else
            state = restated(state, hold, nil, nil, count)
        end
        states[i] = state
        fields[m + 1], fields[m + 2] = place, state
    end
    fields[#fields + 1] = 'c' .. claim
    fields[#fields + 1] = table.concat(places)
    each('ZREM', lane.zset, removed, 1)
    each('ZADD', lane.zset, scores, 2)
    each('HSET', lane.hash, fields, 2)
    lane.due = min(lane.due, ends)
    changed(lane)
    answer[3] = lane.due
    return put(answer, lane, places, states, true)
end

function operations.renew(numbers_, generation, claim, ttl, grace, positions)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local places, states = held_by(lane, claim, positions)
    if #places == 0 then return { OK, 0 } end
    local ends, extended = lane.now + ttl * 1000, lane.now + (ttl + grace) * 1000
    local hold, ends_text = pack(HOLD, ends, lane.now, ttl, claim), HELD .. digits(ends)
    local scores, fields = {}, {}
    for i, place in ipairs(places) do
        local state = states[i]
        scores[#scores + 1], scores[#scores + 2] = ends_text, 'h' .. place
        if expires_of(state) < ends then
            scores[#scores + 1], scores[#scores + 2] = EXPIRY .. digits(extended), 'e' .. place
            state = restated(state, hold, extended, ttl + grace)
        else
            state = restated(state, hold)
        end
        fields[#fields + 1], fields[#fields + 2] = place, state
    end
    call('ZREM', lane.zset, 'h' .. places[1])
    each('ZADD', lane.zset, scores, 2)
    each('HSET', lane.hash, fields, 2)
    lane.due = min(lane.due, ends)
    changed(lane)
    return { OK, 1 }
end

function operations.release(numbers_, generation, claim, delay, positions, attributes)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local places, states = held_by(lane, claim, positions)
    if #places == 0 then return { OK, 0 } end
    local given = {}
    for i = 1, #attributes, 2 do given[digits(attributes[i])] = attributes[i + 1] end
    local visible = lane.now + delay * 1000
    local hold = delay > 0 and pack(HOLD, visible, 0, 0, NOBODY) or nil
    local removed, scores, fields, gone = {}, {}, {}, {}
    for i, place in ipairs(places) do
        local state = restated(states[i], hold)
        if given[place] then state = with_attributes(state, given[place]) end
        removed[#removed + 1] = 'h' .. place
        if hold then
            local due = min(visible, expires_of(state))
            scores[#scores + 1], scores[#scores + 2] = DELAYED .. digits(due), 'd' .. place
            lane.due = min(lane.due, due)
        else
            removed[#removed + 1] = 'u' .. place
            scores[#scores + 1], scores[#scores + 2] = place, place
        end
        fields[#fields + 1], fields[#fields + 2] = place, state
        note(gone, claim, place)
    end
    each('ZREM', lane.zset, removed, 1)
    each('ZADD', lane.zset, scores, 2)
    each('HSET', lane.hash, fields, 2)
    unclaim(lane, gone)
    changed(lane)
    return { OK, 1 }
end

function operations.claimed(numbers_, generation, claim)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local places, states = held_by(lane, claim)
    return put({ OK, lane.now }, lane, places, states, true)
end
