-- Removing messages. The verdict on each: see Removed in nusku.storage.

local GONE, UNCLAIMED, OTHERS, UNKNOWN = 0, 1, 2, 3

function operations.remove(numbers_, generation, positions, removal, claims, together)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local places = valid(lane, positions)
    local states, named, holders, verdicts = {}, {}, {}, {}
    for i, state in ipairs(read(lane, '', places)) do
        if alive(lane, state) then
            local visible, claim = hidden_of(state)
            states[places[i]] = state
            holders[places[i]] = visible > lane.now and claim ~= NOBODY and claim or nil
        end
    end
    for _, claim in ipairs(claims) do named[claim] = true end
    if together then
        local touched = {}
        for place in pairs(states) do
            if holders[place] then touched[holders[place]] = true end
        end
        local same = true
        for claim in pairs(touched) do same = same and named[claim] end
        for claim in pairs(named) do same = same and touched[claim] end
        for place in pairs(states) do verdicts[place] = same and GONE or OTHERS end
    else
        local live
        for place in pairs(states) do
            local holder, verdict = holders[place], GONE
            if removal == 'unclaimed' then
                verdict = holder and OTHERS or GONE
            elseif removal == 'held' then
                if not holder then
                    verdict = UNCLAIMED
                elseif not named[holder] then
                    if live == nil then
                        live = false
                        for claim in pairs(named) do live = live or #held_by(lane, claim) > 0 end
                    end
                    verdict = live and OTHERS or UNKNOWN
                end
            end
            verdicts[place] = verdict
        end
    end
    local gone, gone_states = {}, {}
    for _, place in ipairs(places) do
        if verdicts[place] == GONE then
            gone[#gone + 1], gone_states[#gone_states + 1] = place, states[place]
        end
    end
    forget(lane, gone, gone_states)
    local answer = { OK }
    for _, position in ipairs(positions) do
        answer[#answer + 1] = position > 0 and verdicts[digits(position)] or GONE
    end
    return answer
end

function operations.pop(numbers_, generation, limit)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    enter(lane)
    local places, states = free(lane, limit)
    if not places then return { AGAIN } end
    local answer = put({ OK, lane.now, due_of(lane) }, lane, places, states, true)
    forget(lane, places, states)
    return answer
end
