-- The list of busy lanes (see busy.py), and housekeeping.

-- Whether a lane is empty, and has been for a while.
local function idle(lane)
    return lane.last + IDLE_MS < lane.now and call('ZCARD', lane.zset) == 1
end

-- For those who look at all that is in the list of busy lanes; `oldest`: say when the oldest message
-- was posted. Last comes whether the lane may be taken off the list.
function operations.look(numbers_, registration, oldest)
    local lane = open_lane(numbers_[1])
    if not lane or lane.registration ~= registration then return { OK, now, 0, 0, 0, 0, 1 } end
    flush(lane)
    local unheld, held, delayed = numbers(lane)
    local posted = 0
    if unheld + held + delayed == 0 then
        return { OK, lane.now, 0, 0, 0, 0, idle(lane) and 1 or 0 }
    elseif oldest then
        enter(lane)
        local place, state = outermost(lane, false)
        if place == nil then return { AGAIN } end
        posted = place and (unpack_('>I8', state)) or 0
    end
    return { OK, lane.now, unheld, held, delayed, posted, 0 }
end

-- Take the lane off the list of busy ones, if it was put there under this number and is empty;
-- whether what is in the list is of no use any more.
function operations.retire(numbers_, registration)
    local lane = open_lane(numbers_[1])
    if not lane or lane.registration ~= registration then return { OK, 1 } end
    flush(lane)
    if call('ZCARD', lane.zset) > 1 then return { OK, 0 } end
    lane.registered, lane.registration = false, registration + 1
    changed(lane)
    return { OK, 1 }
end

-- Housekeeping: how many rows were removed or put back, in how many milliseconds there is something
-- to do again, and as in `look` whether the lane may be taken off the list.
function operations.expire(numbers_, registration, limit)
    local lane = open_lane(numbers_[1])
    if not lane or lane.registration ~= registration then return { OK, 0, 0, 1 } end
    flush(lane)
    local done = sweep(lane, limit)
    done = done + settle(lane, limit - done)
    return { OK, done, max(0, min(lane.due, lane.ends) - lane.now), idle(lane) and 1 or 0 }
end

-- The number under which the lane should be in the list; 0 if it need not be there.
function operations.listed(numbers_)
    local lane = open_lane(numbers_[1])
    return { OK, lane and lane.registered and lane.registration or 0 }
end
