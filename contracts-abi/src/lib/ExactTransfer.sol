// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// Takes tokens in and insists that every unit arrived, so that a book entry is never larger than what
/// the vault holds. This refuses fee-on-transfer tokens; tokens that change balances by themselves
/// (rebasing) are not supported and can't be recognised here.
library ExactTransfer {
    /// `received` units of `token` arrived where `expected` were announced.
    error InexactTransfer(address token, uint256 expected, uint256 received);

    function pull(IERC20 token, address from, uint256 amount) internal {
        uint256 balanceBefore = token.balanceOf(address(this));
        SafeERC20.safeTransferFrom(token, from, address(this), amount);
        uint256 balanceAfter = token.balanceOf(address(this));
        uint256 received = balanceAfter > balanceBefore ? balanceAfter - balanceBefore : 0;
        if (received != amount) revert InexactTransfer(address(token), amount, received);
    }
}
