-- Moving messages from one lane to another.

function operations.move(numbers_, generation, positions, goal_generation, ttl, attributes, claim, registration, packed)
    local goal = current(numbers_[2], goal_generation)
    if not goal then return { STALE } end
    local lane = open_lane(numbers_[1])
    if not lane or lane.generation ~= generation then return { OK } end
    if lane.seal > 0 then return { STALE } end
    enter(lane)
    enter(goal)
    local given, packed_anew = {}, {}
    for i = 1, #attributes, 2 do given[digits(attributes[i])] = attributes[i + 1] end
    for i = 1, #packed, 2 do packed_anew[digits(packed[i])] = packed[i + 1] end
    local places, states = {}, {}
    local found = valid(lane, positions)
    for i, state in ipairs(read(lane, '', found)) do
        if alive(lane, state) then
            local visible, holder = hidden_of(state)
            if visible <= lane.now or (claim and holder == claim) then
                places[#places + 1], states[#states + 1] = found[i], state
            end
        end
    end
    if #places == 0 then return { OK } end
    if not goal.registered and registration ~= goal.registration then
        return { REGISTER, 2, goal.registration }
    end
    registered(goal, registration)
    local bodies = read(lane, 'b', places)
    forget(lane, places, states)
    local answer, scores, fields = { OK }, {}, {}
    for i, place in ipairs(places) do
        local position, new = next_position(goal)
        local expires = ttl and goal.now + ttl * 1000 or expires_of(states[i])
        local state = without_dedup(restated(states[i], nil, expires, ttl or nil))
        if given[place] then state = with_attributes(state, given[place]) end
        scores[#scores + 1], scores[#scores + 2] = new, new
        scores[#scores + 1], scores[#scores + 2] = EXPIRY .. digits(expires), 'e' .. new
        fields[#fields + 1], fields[#fields + 2] = new, state
        fields[#fields + 1], fields[#fields + 2] = 'b' .. new, packed_anew[place] or bodies[i]
        goal.ends = min(goal.ends, expires)
        answer[#answer + 1] = position
    end
    each('HSET', goal.hash, fields, 2)
    each('ZADD', goal.zset, scores, 2)
    changed(goal)
    return answer
end
