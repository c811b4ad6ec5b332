// SPDX-License-Identifier: Apache-2.0
/** The destination, cell by cell. */

import t from 'tap';
import { stepDestination } from '../../src/commit/index.js';
import { destinationInputs, destinationStates } from './states.js';
import { holdToTable } from './table.js';

/** What each state does with each kind of input. What is not here changes nothing and puts out nothing. */
const TABLE = `
accepting
  persisted     → receiving: say ready, repeat timer
  persistFailed → ended: say declined, finish returned
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  grant         refuse out-of-order
  done          refuse out-of-order

accepting, given up
  persisted     → givingUp: write gaveUp
  persistFailed → ended: say declined, finish returned
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  grant         refuse out-of-order
  done          refuse out-of-order

receiving
  connected     say ready
  disconnected  patience timer
  repeat        say ready, repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        → givingUp: write gaveUp
  here          refuse nothing-to-decide
  elsewhere     → givingUp: write gaveUp
  offer         say ready
  grant         refuse out-of-order
  withdrawn     → givingUp: write gaveUp
  done          refuse out-of-order
  vmLanded      → landed: say landed, repeat timer

receiving, cut
  connected     say ready
  disconnected  patience timer
  patience      → givingUp: write gaveUp
  repeat        repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        → givingUp: write gaveUp
  here          refuse nothing-to-decide
  elsewhere     → givingUp: write gaveUp
  grant         refuse out-of-order
  withdrawn     → givingUp: write gaveUp
  done          refuse out-of-order
  vmLanded      → landed: repeat timer

landed
  connected     say landed
  disconnected  patience timer
  repeat        say landed, repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        → givingUp: write gaveUp
  here          refuse nothing-to-decide
  elsewhere     → givingUp: write gaveUp
  offer         say landed
  grant         → taking: write taken none grant
  withdrawn     → givingUp: write gaveUp
  done          refuse out-of-order

landed, cut
  connected     say landed
  disconnected  patience timer
  patience      → givingUp: write gaveUp
  repeat        repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        → givingUp: write gaveUp
  here          refuse nothing-to-decide
  elsewhere     → givingUp: write gaveUp
  grant         → taking: write taken none grant
  withdrawn     → givingUp: write gaveUp
  done          refuse out-of-order

taking, witness
  persisted     → contending: ask for 7 B, witness timer
  persistFailed → givingUp: write gaveUp
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

taking, none
  persisted     → starting: run, repeat timer
  persistFailed → givingUp: write gaveUp
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

contending
  connected     say waiting
  witness       say waiting, ask for 7 B, witness timer
  won           → starting: run, repeat timer
  held          → givingUp: write gaveUp
  unreachable   say waiting
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        refuse too-late
  here          → takingRelease: write taken none operator
  elsewhere     → givingUp: write gaveUp
  grant         → takingRelease: write taken none grant
  withdrawn     → givingUp: write gaveUp
  done          refuse out-of-order

contending, restarted
  connected     say waiting
  witness       say waiting, ask for 7 B, witness timer
  won           → starting: run, repeat timer
  held          → givingUp: write gaveUp
  unreachable   say waiting
  vmRuns        stop, refuse no-right
  vmGone        → lost: say gone, repeat timer
  cancel        refuse too-late
  here          → takingRelease: write taken none operator
  elsewhere     → givingUp: write gaveUp
  grant         → takingRelease: write taken none grant
  withdrawn     → givingUp: write gaveUp
  done          refuse out-of-order

takingRelease
  persisted     → starting: run, repeat timer
  persistFailed → contending: witness timer
  vmRuns        stop, refuse no-right
  vmGone        → givingUp: write gaveUp
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

takingRelease, restarted
  persisted     → starting: run, repeat timer
  persistFailed → contending: witness timer
  vmRuns        stop, refuse no-right
  vmGone        → lost: say gone, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

starting, token
  repeat        run, repeat timer
  vmRuns        → running: say runs, write ran, repeat timer
  vmRunFailed   → givingUp: write gaveUp
  vmGone        → lost: say gone, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  withdrawn     refuse contradiction
  done          refuse out-of-order

starting, word
  repeat        run, repeat timer
  vmRuns        → running: say runs, write ran, repeat timer, ask for 7 B, witness timer
  vmRunFailed   → givingUp: write gaveUp
  vmGone        → lost: say gone, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  withdrawn     refuse contradiction
  done          refuse out-of-order

starting, operator
  repeat        run, repeat timer
  vmRuns        → running: say runs, write ran, repeat timer, ask for 7 B, witness timer
  vmGone        → lost: say gone, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  withdrawn     refuse contradiction
  done          refuse out-of-order

running
  connected     say runs
  repeat        say runs, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs
  withdrawn     refuse contradiction
  done          → closing: write finished, repeat timer

running, done, not settled
  connected     say runs
  repeat        repeat timer
  witness       ask for 7 B, witness timer
  won           → closing: write finished, repeat timer
  held          ask for 8 B, witness timer
  vmGone        → closing: write finished, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs
  withdrawn     refuse contradiction

running, done, not noted
  persisted     → closing: write finished, repeat timer
  connected     say runs
  repeat        write ran, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs
  withdrawn     refuse contradiction

running, gone
  connected     say runs
  repeat        say runs, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs
  withdrawn     → closing: write finished, repeat timer
  done          → closing: write finished, repeat timer

running, token unknown
  connected     say runs
  repeat        say runs, repeat timer
  witness       ask for 7 B, witness timer
  held          refuse contradiction
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs
  withdrawn     refuse contradiction

givingUp
  persisted     → ending: end, repeat timer
  persistFailed → ending: end, repeat timer
  vmRuns        stop, refuse no-right
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

ending
  repeat        end, repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → ended: say gaveUp, finish returned
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

ending, not written
  repeat        end, repeat timer
  vmRuns        stop, refuse no-right
  vmGone        → closing: say gaveUp, write gaveUp, repeat timer
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide

lost
  connected     say gone
  repeat        say gone, repeat timer
  cancel        refuse too-late
  here          refuse vm-gone
  elsewhere     → closing: write finished, repeat timer
  offer         say gone
  grant         say gone
  withdrawn     → closing: write finished, repeat timer
  done          → closing: write finished, repeat timer

closing, moved
  persisted     → ended: finish moved
  repeat        write finished, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs

closing, gave up
  persisted     → ended: finish returned
  repeat        write gaveUp, repeat timer
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say gaveUp
  grant         say gaveUp

ended, moved
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say runs
  grant         say runs

ended, gave up
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say gaveUp
  grant         say gaveUp

ended, declined
  cancel        refuse too-late
  here          refuse nothing-to-decide
  elsewhere     refuse nothing-to-decide
  offer         say declined
  grant         say declined
`;

t.test('every state × every kind of input', async (t) => {
  holdToTable(t, TABLE, destinationStates, destinationInputs, stepDestination);
});
