-- From one store to another.

function operations.head(numbers_)
    local lane = open_lane(numbers_[1])
    if not lane then return { OK } end
    flush(lane)
    local total = call('ZCOUNT', lane.zset, EXPIRY .. digits(lane.now + 1), EXPIRY .. LAST)
    return { OK, lane.now, lane.generation, lane.version, lane.next, total, lane.seal }
end

function operations.weigh(numbers_, generation, after, through)
    local lane = open_lane(numbers_[1])
    if not lane or lane.generation ~= generation then return { STALE } end
    enter(lane)
    local found = following(lane, after, STEP, true)
    local count, bytes = 0, 0
    for i, state in ipairs(read(lane, '', found)) do
        local position = tonumber(found[i])
        if position > through then return { OK, count, bytes, through } end
        if alive(lane, state) then
            count, bytes = count + 1, bytes + call('HSTRLEN', lane.hash, 'b' .. found[i]) - CHECKSUM
        end
        after = position
    end
    return { OK, count, bytes, #found < STEP and through or after }
end

function operations.dump(numbers_, generation, after, limit, bodies)
    local lane = open_lane(numbers_[1])
    if not lane or lane.generation ~= generation then return { STALE } end
    enter(lane)
    local answer = { OK, lane.now, 0 }
    local position, budget, bytes, got = after, STEP, BYTES, 0
    while got < limit do
        local want = min(limit - got, 100)
        local found = following(lane, position, want, true)
        local places, states = {}, {}
        for i, state in ipairs(read(lane, '', found)) do
            if alive(lane, state) then
                places[#places + 1], states[#states + 1] = found[i], state
            end
        end
        put(answer, lane, places, states, bodies)
        got = got + #places
        for i = #answer - 3 * #places + 3, #answer, 3 do bytes = bytes - #answer[i] end
        if #found < want then break end
        position = tonumber(found[#found])
        budget = budget - #found
        if (budget <= 0 or bytes <= 0) and got < limit then
            answer[3] = position
            break
        end
    end
    return answer
end

function operations.load(numbers_, generation, version, following_position, after, through, messages, fresh, registration)
    local lane = open_lane(numbers_[1])
    if lane and (lane.generation ~= generation or lane.version > version) then return { STALE } end
    if full then return { FULL } end
    if following_position > POSITIONS then return { USED_UP } end
    lane = lane or create(numbers_[1], generation, version, fresh)
    if not lane then return { FULL } end
    if lane.version ~= version then lane.version = version end
    changed(lane)
    if #messages > 0 and not lane.registered and registration ~= lane.registration then
        return { REGISTER, 1, lane.registration }
    end
    enter(lane)
    local coming = {}
    for _, one in ipairs(messages) do
        if one[1] > after and one[1] <= through then coming[digits(one[1])] = one end
    end
    local position, budget = after, 2 * STEP + #messages
    while true do
        local found = following(lane, position, 100, true)
        local places = {}
        local behind = false
        for _, place in ipairs(found) do
            if tonumber(place) > through then
                behind = true
                break
            end
            if not coming[place] then places[#places + 1] = place end
        end
        forget(lane, places)
        if behind or #found < 100 then break end
        position = tonumber(found[#found])
        budget = budget - #found
        if budget <= 0 then return { AGAIN } end
    end
    lane.next = max(lane.next, following_position)
    local places, claims = {}, {}
    for place in pairs(coming) do places[#places + 1] = place end
    table.sort(places)
    if #places > 0 then registered(lane, registration) end
    local present = read(lane, '', places)
    for i, place in ipairs(places) do
        local state, body, dedup = coming[place][2], coming[place][3], coming[place][4]
        local expires = expires_of(state)
        if present[i] ~= state then
            if present[i] then forget(lane, { place }, { present[i] }) end
            if expires > lane.now then
                local visible, claim = hidden_of(state)
                local where = tonumber(place)
                local fields = { place, state, 'b' .. place, body }
                local scores = { EXPIRY .. digits(expires), 'e' .. place }
                if visible <= lane.now then
                    if visible > 0 then fields[2] = restated(state, nil) end
                    scores[3], scores[4] = place, place
                else
                    local due = min(visible, expires)
                    scores[3], scores[4] = HIDDEN .. place, 'u' .. place
                    if claim == NOBODY then
                        scores[5], scores[6] = DELAYED .. digits(due), 'd' .. place
                    else
                        scores[5], scores[6] = HELD .. digits(due), 'h' .. place
                        claims[claim] = claims[claim] or {}
                        table.insert(claims[claim], place)
                    end
                    lane.due = min(lane.due, due)
                end
                if dedup then
                    local other = call('HGET', lane.hash, 'k' .. dedup)
                    local other_state = other and other ~= place and call('HGET', lane.hash, other)
                    if other_state then
                        call('HSET', lane.hash, other, without_dedup(other_state))
                    end
                    fields[5], fields[6] = 'k' .. dedup, place
                end
                call('HSET', lane.hash, unpack(fields))
                call('ZADD', lane.zset, unpack(scores))
                lane.ends = min(lane.ends, expires)
                lane.next = max(lane.next, where + 1)
            end
        end
    end
    for claim, added in pairs(claims) do
        local list = call('HGET', lane.hash, 'c' .. claim) or ''
        call('HSET', lane.hash, 'c' .. claim, list .. table.concat(added))
    end
    return { OK }
end
