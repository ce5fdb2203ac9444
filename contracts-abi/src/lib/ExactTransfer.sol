// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// Moves tokens into a contract of ours and insists that every unit arrived, so that no book entry
/// is ever larger than what is held. This refuses fee-on-transfer tokens, also those that begin to
/// charge later; tokens that change balances by themselves (rebasing) are not supported and can't
/// be recognised here.
library ExactTransfer {
    /// `received` units of `token` arrived at `to` where `expected` were announced.
    error InexactTransfer(address token, address to, uint256 expected, uint256 received);

    /// From somebody who has approved this contract, into this contract.
    function pull(IERC20 token, address from, uint256 amount) internal {
        uint256 before = token.balanceOf(address(this));
        SafeERC20.safeTransferFrom(token, from, address(this), amount);
        _check(token, address(this), before, amount);
    }

    /// From this contract to another of ours.
    function push(IERC20 token, address to, uint256 amount) internal {
        uint256 before = token.balanceOf(to);
        SafeERC20.safeTransfer(token, to, amount);
        _check(token, to, before, amount);
    }

    function _check(IERC20 token, address to, uint256 before, uint256 amount) private view {
        uint256 balance = token.balanceOf(to);
        uint256 received = balance > before ? balance - before : 0;
        if (received != amount) revert InexactTransfer(address(token), to, amount, received);
    }
}
