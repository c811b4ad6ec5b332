// SPDX-License-Identifier: Apache-2.0
/** The source, cell by cell. */

import t from 'tap';
import { stepSource } from '../../src/commit/index.js';
import { sourceInputs, sourceStates } from './states.js';
import { holdToTable } from './table.js';

/** What each state does with each kind of input. What is not here changes nothing and puts out nothing. */
const TABLE = `
beginning
  persisted     → migrating: say offer, repeat timer
  persistFailed → ended: finish returned
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         refuse out-of-order
  declined      refuse out-of-order
  landed        refuse out-of-order
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        refuse out-of-order
  gone          refuse out-of-order

beginning, given up
  persisted     → resuming: say withdrawn, run, repeat timer
  persistFailed → ended: finish returned
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         refuse out-of-order
  declined      refuse out-of-order
  landed        refuse out-of-order
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        refuse out-of-order
  gone          refuse out-of-order

beginning, gone
  persisted     → closing: say withdrawn, write closed, repeat timer
  persistFailed → ended: finish lost
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         refuse out-of-order
  declined      refuse out-of-order
  landed        refuse out-of-order
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        refuse out-of-order
  gone          refuse out-of-order

migrating
  connected     say offer
  disconnected  patience timer
  repeat        say offer, repeat timer
  vmGone        → closing: say withdrawn, write closed, repeat timer
  cancel        → resuming: say withdrawn, run, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  declined      → resuming: say withdrawn, run, repeat timer
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        → resuming: say withdrawn, run, repeat timer
  gone          refuse out-of-order

migrating, landed
  connected     say offer
  disconnected  patience timer
  repeat        say offer, repeat timer
  vmStopped     → granting: write granted witness
  vmGone        → closing: say withdrawn, write closed, repeat timer
  cancel        → resuming: say withdrawn, run, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  declined      → resuming: say withdrawn, run, repeat timer
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        → resuming: say withdrawn, run, repeat timer
  gone          refuse out-of-order

migrating, stopped
  connected     say offer
  disconnected  patience timer
  repeat        say offer, repeat timer
  vmRuns        → resuming: say withdrawn, run, repeat timer
  cancel        → resuming: say withdrawn, run, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  declined      → resuming: say withdrawn, run, repeat timer
  landed        → granting: write granted witness
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        → resuming: say withdrawn, run, repeat timer
  gone          refuse out-of-order

migrating, cut
  connected     say offer
  disconnected  patience timer
  patience      → resuming: run, repeat timer
  repeat        repeat timer
  vmRuns        → resuming: run, repeat timer
  cancel        → resuming: run, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  declined      → resuming: run, repeat timer
  landed        → granting: write granted witness
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        → resuming: run, repeat timer
  gone          refuse out-of-order

migrating, gone
  connected     say offer
  disconnected  patience timer
  repeat        say offer, repeat timer
  vmRuns        → resuming: say withdrawn, run, repeat timer
  cancel        → closing: say withdrawn, write closed, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  declined      → closing: say withdrawn, write closed, repeat timer
  landed        → granting: write granted witness
  waiting       refuse out-of-order
  runs          refuse contradiction
  gaveUp        → closing: say withdrawn, write closed, repeat timer
  gone          refuse out-of-order

granting
  persisted     → granted: say grant witness, repeat timer
  persistFailed → goingBack: write back unsent, say withdrawn
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  waiting       refuse out-of-order
  runs          refuse contradiction
  gone          refuse out-of-order

granting, cancelled
  persisted     → goingBack: write back unsent
  persistFailed → goingBack: write back unsent, say withdrawn
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  waiting       refuse out-of-order
  runs          refuse contradiction
  gone          refuse out-of-order

granting, gone
  persisted     → granted: say grant witness, repeat timer
  persistFailed → closing: say withdrawn, write closed, repeat timer
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  waiting       refuse out-of-order
  runs          refuse contradiction
  gone          refuse out-of-order

granted
  connected     say grant witness
  disconnected  patience timer
  repeat        say grant witness, repeat timer
  won           → goingBack: write back token
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          → goingBack: write back operator
  elsewhere     → leaving: write moved
  landed        say grant witness
  waiting       → releasing: write granted none
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused
  gone          ask for 7 A, witness timer

granted, cut
  connected     say grant witness
  disconnected  patience timer
  patience      ask for 7 A, witness timer
  repeat        repeat timer
  witness       ask for 7 A, witness timer
  won           → goingBack: write back token
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          → goingBack: write back operator
  elsewhere     → leaving: write moved
  waiting       → releasing: write granted none
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused
  gone          ask for 7 A, witness timer

granted, unsent
  connected     say grant witness
  disconnected  patience timer
  patience      → goingBack: write back unsent
  repeat        repeat timer
  won           → goingBack: write back token
  vmRuns        stop, refuse no-right
  cancel        → goingBack: write back unsent
  here          → goingBack: write back operator
  elsewhere     → leaving: write moved
  waiting       → releasing: write granted none
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused

granted, token held
  connected     say grant witness
  disconnected  patience timer
  repeat        repeat timer
  won           → goingBack: write back token
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          → goingBack: write back operator
  elsewhere     → leaving: write moved
  waiting       → releasing: write granted none
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused

granted, destination gone
  connected     say grant witness
  disconnected  patience timer
  patience      ask for 7 A, witness timer
  repeat        say grant witness, repeat timer
  witness       ask for 7 A, witness timer
  won           → goingBack: write back token
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          → goingBack: write back operator
  elsewhere     → leaving: write moved
  landed        say grant witness
  waiting       → releasing: write granted none
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused

granted, no witness
  connected     say grant none
  disconnected  patience timer
  repeat        repeat timer
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          → goingBack: write back operator
  elsewhere     → leaving: write moved
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused

granted, gone
  connected     say grant witness
  disconnected  patience timer
  repeat        repeat timer
  won           → closing: write closed, repeat timer
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          refuse vm-gone
  elsewhere     → leaving: write moved
  waiting       → releasing: write granted none
  runs          → leaving: write moved
  gaveUp        → closing: write closed, repeat timer
  gone          → closing: write closed, repeat timer

releasing
  persisted     → granted: say grant none, repeat timer
  persistFailed → granted: say grant witness, repeat timer
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  runs          → leaving: write moved
  gaveUp        → goingBack: write back refused

goingBack, refused
  persisted     → resuming: run, repeat timer
  persistFailed → resuming: run, repeat timer
  repeat        write back refused
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  runs          refuse contradiction
  gaveUp        → resuming: run, repeat timer

goingBack, token
  persisted     → resuming: run, repeat timer
  persistFailed repeat timer
  repeat        write back token
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  runs          refuse contradiction
  gaveUp        → resuming: run, repeat timer

goingBack, unsent
  persisted     → resuming: run, repeat timer
  persistFailed repeat timer
  repeat        write back unsent, say withdrawn
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  runs          refuse contradiction
  gaveUp        → resuming: run, repeat timer

goingBack, operator
  persisted     → resuming: run, repeat timer
  persistFailed repeat timer
  repeat        write back operator
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  gaveUp        → resuming: run, repeat timer

goingBack, gone
  persisted     → closing: say withdrawn, write closed, repeat timer
  persistFailed repeat timer
  repeat        write back token
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  runs          refuse contradiction
  gaveUp        → closing: write closed, repeat timer

resuming
  connected     say withdrawn
  repeat        run, repeat timer
  vmRuns        → settling: ask for 7 A, witness timer
  vmGone        → closing: say withdrawn, write closed, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         say withdrawn
  landed        say withdrawn
  waiting       say withdrawn
  runs          refuse contradiction
  gone          say withdrawn

resuming, before the grant
  connected     say withdrawn
  repeat        run, repeat timer
  vmRuns        → closing: write closed, repeat timer
  vmGone        → closing: say withdrawn, write closed, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         say withdrawn
  landed        say withdrawn
  waiting       say withdrawn
  runs          refuse contradiction
  gone          say withdrawn

settling
  connected     say withdrawn
  witness       ask for 7 A, witness timer
  won           → closing: write closed, repeat timer
  held          ask for 8 A, witness timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         say withdrawn
  landed        say withdrawn
  waiting       say withdrawn
  runs          refuse contradiction
  gone          say withdrawn

leaving
  persisted     → ending: say done, end, repeat timer
  persistFailed repeat timer
  repeat        write moved
  vmRuns        stop, refuse no-right
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

ending
  repeat        end, repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → closing: write closed, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         refuse stale
  declined      refuse stale
  landed        say grant none
  waiting       say grant none
  runs          say done
  gaveUp        refuse contradiction
  gone          say done

closing, moved
  persisted     → ended: finish moved
  repeat        write closed, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         refuse stale
  declined      refuse stale
  landed        say grant none
  waiting       say grant none
  runs          say done
  gaveUp        refuse contradiction
  gone          say done

ended, moved
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         refuse stale
  declined      refuse stale
  landed        say grant none
  waiting       say grant none
  runs          say done
  gaveUp        refuse contradiction
  gone          say done

ended, returned
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         say withdrawn
  landed        say withdrawn
  waiting       say withdrawn
  runs          refuse contradiction
  gone          say withdrawn

ended, returned by an operator
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         say withdrawn
  landed        say withdrawn
  waiting       say withdrawn
  runs          say withdrawn
  gone          say withdrawn

ended, lost
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  ready         say withdrawn
  landed        say withdrawn
  waiting       say withdrawn
  runs          say done
  gone          say done
`;

t.test('every state × every kind of input', async (t) => {
  holdToTable(t, TABLE, sourceStates, sourceInputs, stepSource);
});
