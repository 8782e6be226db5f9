'use strict';
'require dom';
'require fs';
'require poll';
'require uci';
'require view';

// What the tunnels do, from the status file that each of them writes. procd is not asked: its list of services has
// the environment of all of them, keys included.

const INTERVAL = 3; // seconds

let earlier = {}; // section -> its status at the last poll

function read(path) {
	return L.resolveDefault(fs.read(path), '');
}

// The status of a tunnel that runs, or null: a file may be that of a process that was killed.
function read_status(section_id) {
	return read('/var/run/kcptun-lite/' + section_id + '.json').then(function(text) {
		let status;

		try {
			status = JSON.parse(text);
		}
		catch (error) {
			return null; // not written yet
		}
		return read('/proc/' + status.pid + '/comm').then(function(name) {
			return name.startsWith('kcptun-lite') ? status : null;
		});
	});
}

// As the init script reads it: any word for yes, and 24.10's `disabled` where there is no `enabled`.
function is_enabled(section) {
	const is_on = function(word) { return /^(1|on|true|yes|enabled)$/i.test(word); };

	return section.enabled != null ? is_on(section.enabled) : section.disabled != null && !is_on(section.disabled);
}

function load_all() {
	return Promise.all(uci.sections('kcptun-lite').filter(function(section) {
		return section['.type'] == 'client' || section['.type'] == 'server';
	}).map(function(section) {
		return read_status(section['.name']).then(function(status) {
			return { name: section['.name'], enabled: is_enabled(section), running: !!status, status: status };
		});
	}));
}

function duration(seconds) {
	if (seconds >= 86400)
		return _('%d d %d h').format(seconds / 86400, seconds % 86400 / 3600);
	if (seconds >= 3600)
		return _('%d h %d min').format(seconds / 3600, seconds % 3600 / 60);
	return _('%d min %d s').format(seconds / 60, seconds % 60);
}

function percent(part, whole) {
	return '%.1f %%'.format(whole ? 100 * part / whole : 0);
}

function both_ways(values, unit) {
	return E('div', [ '↓ %1024.1m'.format(values[0]) + unit, E('br'), '↑ %1024.1m'.format(values[1]) + unit ]);
}

// Bytes per second since the last poll, [in, out]; null before there are two.
function rates(name, status) {
	const last = earlier[name];

	if (!last || last.pid != status.pid || last.updated >= status.updated)
		return last && last.pid == status.pid ? last.rates : null;

	return [ 'bytes_in', 'bytes_out' ].map(function(key) {
		return (status[key] - last[key]) / (status.updated - last.updated);
	});
}

function state(tunnel) {
	if (tunnel.running)
		return E('span', { 'class': 'label success' }, _('Running'));
	if (tunnel.enabled)
		return E('span', { 'class': 'label warning' }, _('Not running'));
	return E('span', { 'class': 'label' }, _('Disabled'));
}

function row(cells) {
	return E('tr', { 'class': 'tr' }, cells.map(function(cell) {
		return E('td', { 'class': 'td' }, [ cell ]);
	}));
}

function table(id, titles, rows, empty) {
	return E('table', { 'class': 'table', 'id': id }, [
		E('tr', { 'class': 'tr table-titles' }, titles.map(function(title) {
			return E('th', { 'class': 'th' }, [ title ]);
		}))
	].concat(rows.length ? rows : [ E('tr', { 'class': 'tr placeholder' }, [ E('td', { 'class': 'td' }, [ empty ]) ]) ]));
}

function tunnel_row(tunnel) {
	const status = tunnel.status;
	const title = E('strong', tunnel.name);

	if (!status)
		return row([ title, state(tunnel), '', '', '', '', '' ]);

	const now = rates(tunnel.name, status);

	status.rates = now;
	earlier[tunnel.name] = status;
	return row([
		title,
		E('div', [ state(tunnel), E('br'), E('small', duration(status.uptime_s)) ]),
		'%d / %d'.format(status.sessions.length, status.streams),
		now ? both_ways(now, 'B/s') : '…',
		both_ways([ status.bytes_in, status.bytes_out ], 'B'),
		_('%s sent again, %d recovered, %d damaged').format(
			percent(status.retransmitted, status.packets_out), status.recovered, status.checksum_errors),
		'%1024.1mB'.format(status.memory_bytes)
	]);
}

function session_rows(tunnels) {
	return [].concat.apply([], tunnels.map(function(tunnel) {
		return ((tunnel.status || {}).sessions || []).map(function(session) {
			return row([
				tunnel.name,
				session.remote,
				'%d ms'.format(session.rtt_ms),
				'%d'.format(session.streams),
				duration(session.age_s),
				_('%d s ago').format(session.idle_s)
			]);
		});
	}));
}

function diagnoses(tunnels) {
	return tunnels.filter(function(tunnel) {
		return tunnel.status && tunnel.status.last_diagnosis;
	}).map(function(tunnel) {
		return E('div', { 'class': 'alert-message warning' }, [
			E('strong', tunnel.name + ': '), tunnel.status.last_diagnosis
		]);
	});
}

function content(tunnels) {
	return diagnoses(tunnels).concat([
		E('h3', _('Tunnels')),
		table('tunnels', [
			_('Name'), _('State'), _('Sessions / streams'), _('Throughput'), _('Carried'), _('Loss'), _('Memory')
		], tunnels.map(tunnel_row), _('There are no tunnels yet.')),
		E('h3', _('Sessions')),
		table('sessions', [
			_('Tunnel'), _('Other end'), _('Round trip'), _('Streams'), _('Age'), _('Last heard')
		], session_rows(tunnels), _('There are no sessions. A client makes one when it is first used.'))
	]);
}

return view.extend({
	load: function() {
		return uci.load('kcptun-lite').then(load_all);
	},

	render: function(tunnels) {
		const node = E('div', { 'class': 'cbi-section' }, content(tunnels));

		poll.add(function() {
			return load_all().then(function(changed) {
				dom.content(node, content(changed));
			});
		}, INTERVAL);

		return E('div', [ E('h2', 'kcptun-lite'), node ]);
	},

	handleSave: null,
	handleSaveApply: null,
	handleReset: null
});
