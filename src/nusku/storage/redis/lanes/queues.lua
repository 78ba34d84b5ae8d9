-- Queues as a whole.

function operations.admit(numbers_, generation, version, fresh)
    local lane = open_lane(numbers_[1])
    if not lane then
        lane = create(numbers_[1], generation, version, fresh)
        if not lane then return { FULL } end
    elseif lane.generation ~= generation then
        return { OK, lane.generation, 0 }
    elseif lane.version < version then
        lane.version = version
        changed(lane)
    end
    return { OK, false, lane.seal }
end

function operations.open(numbers_, generation, version, seal)
    local lane = open_lane(numbers_[1])
    if lane and lane.generation == generation and lane.version == version and lane.seal == seal then
        lane.seal = 0
        changed(lane)
    end
    return { OK }
end

function operations.seal(numbers_, generation, version, fresh)
    local lane = open_lane(numbers_[1])
    if not lane or lane.generation ~= generation or lane.version > version then return { STALE } end
    lane.version, lane.seal = version, fresh
    changed(lane)
    return { OK }
end

function operations.clear(numbers_, generation)
    local lane = current(numbers_[1], generation)
    if not lane then return { STALE } end
    flush(lane)
    call('UNLINK', lane.hash, lane.zset)
    lane.due, lane.ends = FAR, FAR
    changed(lane)
    call('HSET', lane.hash, 'l', head_of(lane))
    call('ZADD', lane.zset, -1, '.')
    return { OK }
end

function operations.drop(numbers_, generation, version, empty, unless_later)
    local lane = open_lane(numbers_[1])
    if not lane or lane.generation ~= generation or (unless_later and lane.version > version) then
        return { OK }
    end
    flush(lane)
    if empty then
        local unheld, held, delayed = numbers(lane)
        if unheld + held + delayed > 0 then return { OK } end
    end
    call('UNLINK', lane.hash, lane.zset)
    lanes[numbers_[1]] = false
    return { OK }
end
